//! One link, frame by frame.

use std::time::Duration;

use revfs_protocol::{BlockIndex, BlockSpan, FileId, PinTo, Tid};

use super::super::pins::{Pins, Waiter};
use super::super::*;

const FILE: FileId = FileId::from_raw(0xf);
const NOW: Duration = Duration::from_secs(100);
const TIMEOUT: Duration = Duration::from_secs(30);

fn block(number: u64) -> BlockIndex {
    BlockIndex::new(number)
}

fn at(raw: u64) -> Tid {
    Tid::from_raw(raw)
}

/// What a link says to what is written.
fn say(link: &mut Link, text: &str) -> (String, Vec<Action>) {
    let mut actions = Vec::new();
    link.write(NOW, text.as_bytes(), false, &mut actions);
    (String::from_utf8(link.read(1 << 20)).unwrap(), actions)
}

fn setup_of(actions: &[Action]) -> SetupRequest {
    let [Action::Setup(request)] = actions else { panic!("{actions:?}") };
    *request
}

/// Carries a set-up out.
fn set_up(link: &mut Link, request: &SetupRequest, pins: &[(BlockSpan, Tid)]) -> Vec<Action> {
    let mut actions = Vec::new();
    assert_eq!(link.setup_start(request, &mut actions), SetupStart::Go);
    assert!(link.setup_move(request, 12345).is_some());
    link.setup_pin(NOW, request, pins, &mut actions);
    actions
}

/// A link that watches at 1 and owes a pin of block 7.
fn owing() -> Link {
    let mut link = Link::new(LinkOptions { pin_timeout: TIMEOUT, ..LinkOptions::default() });
    let (_, actions) = say(&mut link, "1 watch 000000000000000f @0000000000000001\n");
    set_up(&mut link, &setup_of(&actions), &[(BlockSpan::one(block(7)), at(1))]);
    assert_eq!(say(&mut link, "").0, "2 pin 000000000000000f #7 @0000000000000001\n");
    link
}

fn fault(actions: &[Action]) -> &Fault {
    let found = actions.iter().find_map(|action| match action {
        Action::Kill(fault) => Some(fault),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("{actions:?}"))
}

#[test]
fn requests_are_answered_in_the_words_of_wcfs() {
    for (said, heard) in [
        ("1 hello range size\n", "1 ok range size\n"),
        ("1 hello size unknown\n", "1 ok size\n"),
        ("1 watch 000000000000000f\n", "1 error bad watch: expected 2 arguments, got 1\n"),
        ("1 frob\n", "1 error bad watch: not a watch request: \"frob\"\n"),
        ("3 watch 0f @0000000000000001\n", "3 error bad watch: invalid oid\n"),
        ("5 watch 000000000000000f 1\n", "5 error bad watch: invalid at\n"),
        ("7 watch 000000000000000f -\n", "7 ok\n"),
        ("hello\n", "0 error: invalid frame: \"hello\\n\"\n"),
        ("-1 hello\n", "0 error: invalid frame: \"-1 hello\\n\" (invalid stream)\n"),
        ("2 ack\n", "0 error: 2: reply on unexpected stream\n"),
    ] {
        let mut link = Link::new(LinkOptions::default());
        assert_eq!(say(&mut link, said).0, heard, "{said:?}");
        assert_eq!(link.is_over(), heard.starts_with("0 "), "only frames that are none end a link: {said:?}");
    }
}

#[test]
fn a_line_without_end_ends_its_link() {
    let mut link = Link::new(LinkOptions::default());
    let (heard, _) = say(&mut link, &format!("1 {}", "x".repeat(300)));
    assert!(heard.starts_with("0 error: ") && link.is_over(), "{heard}");
}

#[test]
fn each_frame_cut_anywhere_hurts_nobody_else() {
    let frames = ["1 watch 000000000000000f @0000000000000001", "2 ack", "3 hello range size", "5 bye"];
    for frame in frames {
        for cut in 0..frame.len() {
            let mut link = Link::new(LinkOptions::default());
            let (heard, actions) = say(&mut link, &format!("{}\n", &frame[..cut]));
            let refused =
                heard.contains(" error ") || heard.starts_with("0 error: ") || heard.contains(" ok");
            assert!(refused || link.is_over(), "{:?}: {heard:?}", &frame[..cut]);
            assert!(!actions.iter().any(|action| matches!(action, Action::Kill(_) | Action::Setup(_))));
            // The rest comes later, as if it was written at once.
            let mut link = Link::new(LinkOptions::default());
            let first = say(&mut link, &frame[..cut]);
            assert_eq!((first.0.as_str(), first.1.len()), ("", 0));
            assert_eq!(link.has_half_frame(), cut > 0);
            let whole = say(&mut Link::new(LinkOptions::default()), &format!("{frame}\n"));
            assert_eq!(say(&mut link, &format!("{}\n", &frame[cut..])), whole);
        }
    }
}

#[test]
fn ok_follows_the_acks_and_says_the_size_to_who_asked() {
    for (hello, ok) in [("", "1 ok\n"), ("99 hello size\n", "1 ok size=12345\n")] {
        let mut link = Link::new(LinkOptions::default());
        say(&mut link, hello);
        let (_, actions) = say(&mut link, "1 watch 000000000000000f @0000000000000001\n");
        let span = BlockSpan { first: block(3), last: block(5) };
        set_up(&mut link, &setup_of(&actions), &[(span, at(1))]);
        let (pins, _) = say(&mut link, "");
        assert_eq!(pins.lines().count(), 3, "one frame a block without `range`");
        assert_eq!(say(&mut link, "4 ack\n6 ack\n").0, "");
        assert_eq!(say(&mut link, "2 ack\n").0, ok);
    }
}

#[test]
fn who_knows_ranges_gets_neighbours_in_one_frame() {
    let mut link = Link::new(LinkOptions::default());
    say(&mut link, "99 hello range\n");
    let (_, actions) = say(&mut link, "1 watch 000000000000000f @0000000000000002\n");
    let pins = [
        (BlockSpan { first: block(3), last: block(5) }, at(1)),
        (BlockSpan::one(block(6)), at(2)),
        (BlockSpan::one(block(8)), at(2)),
    ];
    set_up(&mut link, &setup_of(&actions), &pins);
    let file = "pin 000000000000000f";
    let expected = format!("2 {file} #3-5 @{}\n4 {file} #6 @{}\n6 {file} #8 @{}\n", at(1), at(2), at(2));
    assert_eq!(say(&mut link, "").0, expected);
}

#[test]
fn who_owes_an_ack_is_at_fault_for_what_breaks_the_protocol_and_for_time() {
    let cut = |text: &str| text.to_owned();
    for (said, cause) in [
        (cut("2 nak\n"), "pin #7 @0000000000000001: the client answered \"nak\""),
        (cut("hello\n"), "invalid frame: \"hello\\n\""),
        (cut("4 ack\n"), "4: reply on unexpected stream"),
        ("x".repeat(300), "line of more than 256 bytes"),
    ] {
        let mut link = owing();
        let (heard, actions) = say(&mut link, &said);
        assert!(fault(&actions).cause.contains(cause), "{actions:?}");
        assert_eq!(fault(&actions).grace, Duration::ZERO);
        assert!(heard.starts_with("0 fatal: ") && heard.len() <= revfs_protocol::FRAME_BYTES_MAX, "{heard}");
        assert!(link.is_faulted() && !link.is_over(), "its pins do not count as done before it is dead");
        link.dead(&mut Vec::new());
        assert!(link.is_over());
    }
    let mut link = owing();
    let mut actions = Vec::new();
    link.tick(NOW + TIMEOUT - Duration::from_nanos(1), &mut actions);
    assert_eq!(actions, []);
    link.tick(NOW + TIMEOUT, &mut actions);
    assert!(fault(&actions).cause.contains("not acknowledged within 30s"), "{actions:?}");
    let mut link = owing();
    let mut actions = Vec::new();
    link.closed(NOW + TIMEOUT - Duration::from_secs(1), &mut actions);
    assert_eq!(fault(&actions).grace, Duration::from_secs(1), "not past the pin's own time");
}

#[test]
fn who_acks_pins_in_their_order_has_the_time_of_one_for_each() {
    let mut link = Link::new(LinkOptions { pin_timeout: TIMEOUT, ..LinkOptions::default() });
    let (_, actions) = say(&mut link, "1 watch 000000000000000f @0000000000000001\n");
    let pins = [7, 9, 11, 13].map(|index| (BlockSpan::one(block(index)), at(1)));
    set_up(&mut link, &setup_of(&actions), &pins);
    let ack = |link: &mut Link, now: Duration, frame: &str| {
        link.write(now, frame.as_bytes(), false, &mut Vec::new());
        link.due()
    };
    let second = Duration::from_secs(1);
    assert_eq!(link.due(), Some(NOW + TIMEOUT));
    assert_eq!(ack(&mut link, NOW + TIMEOUT - second, "2 ack\n"), Some(NOW + TIMEOUT * 2 - second));
    // Another one does not count for the oldest.
    assert_eq!(ack(&mut link, NOW + TIMEOUT, "6 ack\n"), Some(NOW + TIMEOUT * 2 - second));
    link.postpone(second);
    assert_eq!(ack(&mut link, NOW + TIMEOUT, ""), Some(NOW + TIMEOUT * 2));
    assert_eq!(ack(&mut link, NOW + TIMEOUT, "4 ack\n"), Some(NOW + TIMEOUT * 2));
    link.postpone(second);
    let mut actions = Vec::new();
    link.tick(NOW + TIMEOUT * 2 + second, &mut actions);
    assert!(fault(&actions).cause.starts_with("pin #13 "), "{actions:?}");
}

#[test]
fn who_owes_nothing_is_never_at_fault() {
    type End = fn(&mut Link, &mut Vec<Action>);
    let ends: [(&str, End); 3] = [
        ("closed", |link, actions| link.closed(NOW, actions)),
        ("bye", |link, actions| link.write(NOW, b"99 bye\n", false, actions)),
        ("garbage", |link, actions| link.write(NOW, b"garbage\n", false, actions)),
    ];
    for (what, end) in ends {
        let mut link = owing();
        assert_eq!(say(&mut link, "2 ack\n").0, "1 ok\n");
        let mut actions = Vec::new();
        link.tick(NOW + TIMEOUT * 9, &mut actions);
        end(&mut link, &mut actions);
        assert!(!actions.iter().any(|action| matches!(action, Action::Kill(_))), "{what}: {actions:?}");
        assert!(
            actions.iter().any(|action| matches!(action, Action::Unregister { .. })),
            "{what}: {actions:?}"
        );
        assert!(link.is_over());
    }
    // A pin of a watch that is dropped is not owed, whatever is said to it.
    for answer in ["2 ack", "2 nak"] {
        let mut link = owing();
        assert_eq!(say(&mut link, "3 watch 000000000000000f -\n").0.lines().last(), Some("3 ok"));
        assert_eq!(say(&mut link, &format!("{answer}\n")), (String::new(), Vec::new()));
    }
    // `bye` drops what is owed, and kills nobody.
    let mut link = owing();
    let (_, actions) = say(&mut link, "3 bye\n");
    assert!(!actions.iter().any(|action| matches!(action, Action::Kill(_))) && link.is_over());
}

#[test]
fn another_process_may_ack_but_not_watch() {
    let mut link = owing();
    let mut actions = Vec::new();
    link.write(NOW, b"5 watch 000000000000000f @0000000000000002\n2 ack\n", true, &mut actions);
    let heard = String::from_utf8(link.read(999)).unwrap();
    let refused = "5 error setup watch: only the process that opened the link may watch\n";
    assert_eq!(heard, format!("{refused}1 ok\n"));
    assert!(!actions.iter().any(|action| matches!(action, Action::Setup(_))));
}

#[test]
fn replies_that_nobody_reads_end_only_their_link() {
    let mut link = Link::new(LinkOptions::default());
    let mut actions = Vec::new();
    for _ in 0..10_000 {
        link.write(NOW, b"1 hello\n", false, &mut actions);
    }
    assert!(link.is_over() && !actions.iter().any(|action| matches!(action, Action::Kill(_))));
    let heard = String::from_utf8(link.read(1 << 20)).unwrap();
    assert_eq!(heard.lines().last(), Some("0 error: too many replies are not read"));
    assert!(heard.lines().count() < 5000);
}

#[test]
fn a_target_of_an_earlier_registration_counts_no_more() {
    let mut link = owing();
    assert_eq!(say(&mut link, "2 ack\n").0, "1 ok\n");
    let revs = [(BlockSpan::one(block(7)), at(9))];
    let known = link.read_begin(FILE, &revs, WaitId(1)).unwrap();
    assert_eq!((known.waits, known.unknown.len()), (0, 0), "the client maps it");
    let (_, actions) = say(&mut link, "3 watch 000000000000000f @0000000000000005\n");
    let request = setup_of(&actions);
    assert_eq!(link.setup_start(&request, &mut Vec::new()), SetupStart::Go);
    assert!(link.setup_move(&request, 0).is_some());
    let moved = link.read_begin(FILE, &revs, WaitId(2)).unwrap();
    assert_eq!((moved.at, moved.unknown), (at(5), vec![BlockSpan::one(block(7))]));
}

#[test]
fn a_block_whose_unpin_is_on_its_way_is_pinned_again_behind_it() {
    let mut link = owing();
    assert_eq!(say(&mut link, "2 ack\n").0, "1 ok\n");
    let (_, actions) = say(&mut link, "3 watch 000000000000000f @0000000000000005\n");
    set_up(&mut link, &setup_of(&actions), &[]);
    assert_eq!(say(&mut link, "").0, "4 pin 000000000000000f #7 @head\n");
    let seven = BlockSpan::one(block(7));
    let need = link.read_begin(FILE, &[(seven, at(9))], WaitId(1)).unwrap();
    assert_eq!((need.at, need.waits, need.unknown), (at(5), 0, vec![seven]));
    let mut actions = Vec::new();
    let targets = [(seven, at(4))];
    assert_eq!(link.read_pin(NOW, (FILE, need.serial), &targets, WaitId(1), &mut actions), Ok(1));
    let (heard, actions) = say(&mut link, "4 ack\n");
    assert_eq!(heard, "6 pin 000000000000000f #7 @0000000000000004\n3 ok\n", "the set-up wanted no more");
    assert!(!actions.contains(&Action::Release(WaitId(1))), "{actions:?}");
    let (_, actions) = say(&mut link, "6 ack\n");
    assert!(actions.contains(&Action::Release(WaitId(1))), "{actions:?}");
}

#[test]
fn who_needs_a_pin_of_a_client_at_fault_waits_for_its_death_once() {
    let mut link = owing();
    say(&mut link, "2 nak\n");
    let revs = [(BlockSpan { first: block(1), last: block(9) }, at(9))];
    let need = link.read_begin(FILE, &revs, WaitId(1)).unwrap();
    assert_eq!((need.waits, need.unknown), (1, vec![]));
    // Between the question and the pin it comes to that too.
    let pinned = link.read_pin(NOW, (FILE, need.serial), &[(revs[0].0, at(1))], WaitId(2), &mut Vec::new());
    assert_eq!(pinned, Ok(1));
    let mut actions = Vec::new();
    link.dead(&mut actions);
    for wait in [1, 2] {
        assert_eq!(
            actions.iter().filter(|action| **action == Action::Release(WaitId(wait))).count(),
            1,
            "{actions:?}"
        );
    }
}

#[test]
fn a_block_has_one_pin_on_its_way_and_one_newest_target() {
    let (serial, rev) = (Serial(1), |raw| PinTo::Rev(at(raw)));
    let one = BlockSpan::one(block(1));
    let aim = |pins: &mut Pins, to| !pins.aim(one, to, serial).is_empty();
    let acked = |pins: &mut Pins, released: &mut Vec<Waiter>| {
        let next = pins.acked(one, released);
        next.first().map(|(_, to)| *to)
    };
    let mut pins = Pins::default();
    let mut released = Vec::new();
    assert!(!aim(&mut pins, PinTo::Head), "it is there");
    assert!(aim(&mut pins, rev(1)), "sent");
    assert!(!aim(&mut pins, rev(2)), "queued behind it");
    assert!(pins.wait(one, Waiter::Read(WaitId(2))));
    assert!(!aim(&mut pins, rev(3)), "replaces what is queued");
    assert_eq!(acked(&mut pins, &mut released), Some(rev(3)));
    assert_eq!(released, [], "its target was replaced, and that is not acked yet");
    assert_eq!(acked(&mut pins, &mut released), None);
    assert_eq!(released, [Waiter::Read(WaitId(2))]);
    assert!(!pins.wait(one, Waiter::Setup), "nothing to wait for");
    // Back to what is on its way: nothing more is to be sent.
    assert!(aim(&mut pins, rev(4)));
    assert!(!aim(&mut pins, rev(5)));
    assert!(!aim(&mut pins, rev(4)));
    assert_eq!(acked(&mut pins, &mut released), None);
    // Who waits for what is on its way does not wait for what comes behind it.
    assert!(aim(&mut pins, rev(6)));
    assert!(pins.wait(one, Waiter::Setup));
    assert!(!aim(&mut pins, PinTo::Head));
    released.clear();
    assert_eq!(acked(&mut pins, &mut released), Some(PinTo::Head));
    assert_eq!(released, [Waiter::Setup]);
    assert_eq!((acked(&mut pins, &mut released), pins.len()), (None, 0), "head has no entry");
}
