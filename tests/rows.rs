//! The ways in which isolation here is better than in its ancestor WCFS, one test for each, named after its number, on a native
//! store and on a ZODB database.
//!
//! | row | what a test here shows |
//! |---|---|
//! | 1 | a READ that waits and a commit of its block do not wait for each other |
//! | 2 | lookups wait for nobody, and the server never uses its own mount |
//! | 3 | a pin of a watch that was dropped is owed by nobody, whatever is answered |
//! | 4 | a set-up that fails leaves what was before |
//! | 5 | a client is a process, and not the thread that opened the link |
//! | 6 | a block that becomes a hole has changed |
//! | 7 | reads behind the end of `head/at`, the empty state and nonsense hurt nobody |
//! | 8 | the size is that of the revision, also when the file shrinks |
//! | 9 | an end of one file is told to who watches it, and to nobody else |
//! | 10 | a READ that is given up fails no other |
//! | 11 | revisions that were looked at hold no descriptor (when they are freed is not shown: the kernel decides) |
//! | 12 | an idle watch needs no history in memory |
//! | 13 | history reaches back to before the server's start |
//! | 14 | one server a mount point, any number a store |
//! | 15 | a store that is lost for a while is served on |
//! | 16 | a READ is answered with its range |
//! | 17 | nothing of a changed block is read or kept for nobody |
//! | 18 | pins of neighbours come in one frame, for who can |
//! | 19 | a stop leaves no mount, and tells the clients |
//! | 20 | statistics are there while everything waits |
//!
//! Of 9, handles of a file that was removed go on being read, as those of a local one do, where the design has ESTALE. Of
//! 15, reads wait for no storage that is away: a store is a directory, and one that is away may be so for ever. Of 12,
//! the bound of what was read is in `server/tracking`; of 20, histograms are in `isolation.rs`.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/datafs.rs"]
mod datafs;
#[macro_use]
#[path = "common/each_store.rs"]
mod each_store;
#[path = "common/link.rs"]
mod link;
#[path = "common/live.rs"]
mod live;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "common/puppet.rs"]
mod puppet;
#[path = "rows/server.rs"]
mod server;
#[path = "common/stage.rs"]
mod stage;
#[path = "rows/watches.rs"]
mod watches;

// The compiler tells of a row that is missing here.
on_each_store! {
    server:
        row_02_lookups_wait_for_nobody_and_the_server_never_uses_its_own_mount,
        row_07_no_path_and_no_offset_hurts_the_server,
        row_09_an_end_of_one_file_is_told_to_who_watches_it_and_to_nobody_else,
        row_15_a_store_that_is_lost_for_a_while_is_served_on,
        row_17_nothing_of_a_changed_block_is_read_or_kept_for_nobody,
        row_11_revisions_that_were_looked_at_hold_no_descriptor,
        row_14_one_server_a_mount_point_and_any_number_a_store,
        row_16_a_read_is_answered_with_its_range,
        row_19_a_stop_leaves_no_mount_and_tells_the_clients,
        row_20_statistics_are_there_while_everything_waits;
    watches:
        row_01_a_read_that_waits_and_a_commit_of_its_block_do_not_wait_for_each_other,
        row_03_a_pin_of_a_dropped_watch_is_owed_by_nobody,
        row_04_a_set_up_that_fails_leaves_what_was_before,
        row_05_a_client_is_a_process_and_not_the_thread_that_opened_the_link,
        row_06_a_block_that_becomes_a_hole_has_changed,
        row_08_the_size_is_that_of_the_revision,
        row_10_a_read_that_is_given_up_fails_no_other,
        row_18_pins_of_neighbours_come_in_one_frame_for_who_can,
        row_12_an_idle_watch_needs_no_history_in_memory,
        row_13_history_reaches_back_to_before_the_servers_start;
}
