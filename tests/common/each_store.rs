//! Tests that are played on a native store and on a ZODB database.

use crate::live::no_fuse;
use crate::stage::Kind;

/// Makes tests of functions that take a [`Kind`]: `native::NAME` and `zodb::NAME`.
macro_rules! on_each_store {
    ($($module:ident: $($scenario:ident),+;)+) => {
        mod native {
            $($(
                #[test]
                fn $scenario() {
                    $crate::each_store::play(stringify!($scenario), $crate::stage::Kind::Native, $crate::$module::$scenario);
                }
            )+)+
        }
        mod zodb {
            $($(
                #[test]
                fn $scenario() {
                    $crate::each_store::play(stringify!($scenario), $crate::stage::Kind::Zodb, $crate::$module::$scenario);
                }
            )+)+
        }
    };
}

/// Plays one of them, if there is FUSE.
pub fn play(name: &str, kind: Kind, scenario: fn(Kind)) {
    if !no_fuse(name) {
        scenario(kind);
    }
}
