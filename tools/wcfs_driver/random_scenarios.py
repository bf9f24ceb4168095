"""Random commits, reads and watches on trees of small nodes, each step compared with history."""

from edits import files
from history import tid_text
from objects import ZBlk0, ZBlk1, limit_trees
from scenario import scenario
from stage import CHUNK, SMALL

STEPS = 150
BLOCKS = 24
LINKS = 3


class Play:
    """One run."""

    def __init__(self, stage):
        self.stage = stage
        self.rng = stage.random()
        self.tids = []
        self.opened = {}
        self.steps = [(self.commit, 5), (self.read, 8), (self.set_up, 4), (self.move_all, 1), (self.end_watch, 1),
                      (self.say_bye, 1), (self.share, 1), (self.evict, 1)]

    def begin(self):
        """A server, with all files open."""
        self.stage.start()
        self.tids = [self.stage.history.head()]
        self.opened = {history: self.stage.open(history) for history in self.stage.history.files.values()}

    def step(self):
        """Any of the steps."""
        steps, weights = zip(*self.steps, strict=True)
        self.rng.choices(steps, weights)[0]()

    def file(self):
        """Any file."""
        return self.rng.choice(list(self.opened))

    def commit(self):
        """Blocks of a file change, appear and go. The last one stays, so that the file does not become shorter."""
        history = self.file()
        blocks = self.rng.sample(range(BLOCKS), self.rng.randint(1, 6))
        texts = {block: None if self.rng.random() < 0.2 else self.text() for block in blocks}
        kind = self.rng.choice([ZBlk0, ZBlk1])

        def edit(root):
            table = root[history.name].blktab
            for block, text in texts.items():
                if text is None and block in table:
                    del table[block]
                elif block in table and self.keeps(block):
                    table[block].put(text or b"", list(range(0, SMALL, CHUNK)))
                else:
                    table[block] = zblk = kind() if kind is ZBlk1 else ZBlk0(b"")
                    zblk.put(text or b"", list(range(0, SMALL, CHUNK)))
            # Something that is no file, so that there is always a change.
            root["count"] = root.get("count", 0) + 1

        self.tids.append(self.stage.commit_edit(edit))

    @staticmethod
    def keeps(block):
        """Whether a block keeps its object when it is written."""
        return block % 3 > 0

    def text(self):
        """Content of a block."""
        return f"{self.rng.random()} ".encode() * self.rng.randint(1, 900)

    def share(self):
        """A block object gets one more place, in any file."""
        numbers = self.rng.random(), self.rng.randrange(BLOCKS), self.file().name

        def edit(root):
            there = [zblk for file in files(root).values() for zblk in file.blktab.values()]
            root[numbers[2]].blktab[numbers[1]] = there[int(numbers[0] * len(there))]
            root["count"] = root.get("count", 0) + 1

        self.tids.append(self.stage.commit_edit(edit))

    def read(self):
        """A block of head is read."""
        self.stage.access(self.opened[self.file()], self.rng.randrange(BLOCKS + 1))

    def evict(self):
        """A block goes out of memory."""
        file = self.opened[self.file()]
        if file.cached:
            file.evict(self.rng.choice(sorted(file.cached)))

    def links(self):
        """Links that are open."""
        return [link for link in self.stage.links if link.is_open]

    def set_up(self):
        """A watch is set up or moved, on a link that may be new."""
        links = self.links()
        link = self.stage.link() if len(links) < LINKS else self.rng.choice(links)
        history = self.file()
        watch = link.watches.get(history.oid)
        known = [tid for tid in self.tids if watch is None or tid >= watch.at]
        at = self.rng.choice(known)
        print(f"link {self.stage.links.index(link)} watch {history.name} @{tid_text(at)}", flush=True)
        self.stage.watch(link, history, at)

    def move_all(self):
        """All watches of a link come to head."""
        links = self.links()
        if links:
            link = self.rng.choice(links)
            for history in self.opened:
                if history.oid in link.watches:
                    self.stage.watch(link, history, self.tids[-1])

    def end_watch(self):
        """A watch ends."""
        links = self.links()
        if links:
            self.stage.unwatch(self.rng.choice(links), self.file())

    def say_bye(self):
        """A link ends."""
        links = self.links()
        if links:
            self.rng.choice(links).bye()


@scenario
def random_commits_reads_and_watches_are_as_history_says(stage):
    limit_trees(3, 3)
    stage.make_database()
    for name in ("first", "second"):
        history = stage.make_file(name, SMALL)
        stage.commit((history, {block: f"{block} of {name}" for block in (0, 1, 5, 9, BLOCKS)}))
    play = Play(stage)
    for _ in range(3):
        play.begin()
        for _ in range(STEPS // 3):
            play.step()
        stage.stop()
