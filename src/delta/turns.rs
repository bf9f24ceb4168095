//! Two threads that take turns at the accesses to what they share, as a schedule says.
//!
//! Invariant: of two that play, one runs at a time, and what it does between two accesses nobody else can see; so a schedule is
//! all that tells one run from another. Left out: what a processor does with the order of accesses beyond that.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::{self, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// More accesses than anybody needs here: whoever makes so many goes round for ever.
const ACCESSES_MAX: usize = 100_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Reader,
    Writer,
}

#[derive(Debug)]
struct Play {
    legs: VecDeque<(Who, usize)>,
    // Accesses that each has made.
    made: [usize; 2],
    ended: [bool; 2],
}

#[derive(Debug)]
struct Stage {
    play: Mutex<Play>,
    moved: Condvar,
}

thread_local! {
    static ROLE: RefCell<Option<(Arc<Stage>, Who)>> = const { RefCell::new(None) };
}

/// The reader writes nothing: so only what the writer stores and what the reader loads can be told from outside, and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Load,
    Store,
}

/// An access to what is shared comes next.
fn turn(access: Access) {
    let role = ROLE.with_borrow(Clone::clone);
    if let Some((stage, who)) = role
        && (who == Who::Reader || access == Access::Store)
    {
        stage.wait(who);
    }
}

impl Stage {
    fn wait(&self, who: Who) {
        let mut play = self.play.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((next, left)) = play.legs.front().copied() {
            if next == who && left > 0 {
                play.legs[0].1 -= 1;
                break;
            }
            if next == who || play.ended[next as usize] {
                play.legs.pop_front();
                self.moved.notify_all();
            } else {
                play = self.moved.wait(play).unwrap_or_else(PoisonError::into_inner);
            }
        }
        play.made[who as usize] += 1;
        assert!(play.made[who as usize] < ACCESSES_MAX, "{who:?} goes round for ever");
    }
}

/// Takes a role off, also of who panics.
struct Role;

impl Role {
    fn take(stage: &Arc<Stage>, who: Who) -> Role {
        ROLE.set(Some((Arc::clone(stage), who)));
        Role
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if let Some((stage, who)) = ROLE.take() {
            stage.play.lock().unwrap_or_else(PoisonError::into_inner).ended[who as usize] = true;
            stage.moved.notify_all();
        }
    }
}

/// Runs both, by the legs, then the reader and then the writer to the end; answers how many accesses each has made,
/// and what the reader answered.
pub fn play<T: Send>(
    legs: &[(Who, usize)],
    reader: impl FnOnce() -> T + Send,
    writer: impl FnOnce(),
) -> ([usize; 2], T) {
    let to_the_end = [(Who::Reader, usize::MAX), (Who::Writer, usize::MAX)];
    let play =
        Play { legs: legs.iter().copied().chain(to_the_end).collect(), made: [0; 2], ended: [false; 2] };
    let stage = Arc::new(Stage { play: Mutex::new(play), moved: Condvar::new() });
    let answer = std::thread::scope(|scope| {
        #[allow(clippy::disallowed_methods)] // scoped, so that it may borrow
        let reader = scope.spawn(|| {
            let _role = Role::take(&stage, Who::Reader);
            reader()
        });
        {
            let _role = Role::take(&stage, Who::Writer);
            writer();
        }
        reader.join()
    });
    let made = stage.play.lock().unwrap_or_else(PoisonError::into_inner).made;
    (made, answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

macro_rules! atomic {
    ($name:ident, $value:ty) => {
        /// The double of the one in `std`.
        #[derive(Debug, Default)]
        pub struct $name(atomic::$name);

        impl $name {
            pub const fn new(value: $value) -> $name {
                $name(atomic::$name::new(value))
            }

            pub fn load(&self, order: Ordering) -> $value {
                turn(Access::Load);
                self.0.load(order)
            }

            pub fn store(&self, value: $value, order: Ordering) {
                turn(Access::Store);
                self.0.store(value, order);
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

impl AtomicU32 {
    pub fn fetch_or(&self, value: u32, order: Ordering) -> u32 {
        turn(Access::Store);
        self.0.fetch_or(value, order)
    }
}

/// The double of the one in `arc_swap`.
#[derive(Debug)]
pub struct ArcSwap<T>(arc_swap::ArcSwap<T>);

impl<T> ArcSwap<T> {
    pub fn from_pointee(value: T) -> ArcSwap<T> {
        ArcSwap(arc_swap::ArcSwap::from_pointee(value))
    }

    pub fn load(&self) -> arc_swap::Guard<Arc<T>> {
        turn(Access::Load);
        self.0.load()
    }

    pub fn store(&self, value: Arc<T>) {
        turn(Access::Store);
        self.0.store(value);
    }
}
