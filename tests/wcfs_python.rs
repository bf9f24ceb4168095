//! The client of wendelin.core and its tests, played by `tools/wcfs_driver` in Python against the program `wcfs`.
//!
//! Invariant: each scenario of the driver is a test here, and nothing that it mounts or starts outlives its test.
//! Skips loudly without the Python of `.ci/run`.

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "common/live.rs"]
mod live;
#[path = "zodb/python.rs"]
mod python;

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use live::{SOON, end_of, mounts_below, no_fuse, no_root, signal_to, slow, wait_for, wait_until};
use rustix::process::Signal;

/// The driver ends a scenario after this, which is then stuck.
const LIMIT_SECONDS: &str = "150";
/// A driver that takes longer hangs itself. It may play a scenario more than once.
const LIMIT: Duration = Duration::from_secs(300);
/// The same for all scenarios in a row.
const LIMIT_ALL: Duration = Duration::from_secs(1200);
/// What depends on how the database is reached; the slow version plays all.
const OVER_ZEO: &[&str] = &[
    "a_zeo_server_that_restarts_is_followed_and_nothing_is_missed",
    "a_client_of_an_old_state_reads_all_blocks_while_others_commit",
    "a_database_that_cannot_be_opened_ends_it_before_it_mounts",
    "an_epoch_of_a_file_in_use_ends_all",
    "commits_are_seen_in_head_and_stay_under_their_revisions",
    "random_commits_reads_and_watches_are_as_history_says",
    "the_client_finds_the_server_by_its_process_and_mount",
    "zhead_says_each_commit_once_to_each_that_reads_it",
];

/// A driver at work in a folder of its own.
struct Player {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Player {
    fn drop(&mut self) {
        // First the orderly end, in which it cleans up.
        if matches!(self.child.try_wait(), Ok(None)) {
            signal_to(self.child.id(), Signal::TERM);
            let _ = catch_unwind(AssertUnwindSafe(|| end_of(&mut self.child, SOON)));
        }
        let root = self.folder.path().canonicalize().unwrap();
        for mount in mounts_below(&root).iter().rev() {
            // Whoever waits for it goes on with an error, and its server ends.
            let _ = fs::write(format!("/sys/fs/fuse/connections/{}/abort", mount.minor), "1");
            let _ = rustix::mount::unmount(&mount.path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn driver(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/wcfs_driver"));
    command
}

/// Plays scenarios of the test.
fn play(test: &str, storage: &str, names: &[&str], limit: Duration) {
    if no_fuse(test) || no_root(test) {
        return;
    }
    let Some(python) = python::python(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let out = File::create(&said).unwrap();
    let mut command = driver(&python);
    command.args(["--wcfs", env!("CARGO_BIN_EXE_wcfs"), "--storage", storage, "--limit", LIMIT_SECONDS]);
    command.args(names).env("TMPDIR", folder.path()).stdin(Stdio::null());
    command.stdout(out.try_clone().unwrap()).stderr(out);
    let mut player = Player { child: command.spawn().unwrap(), folder };
    let ended = catch_unwind(AssertUnwindSafe(|| {
        wait_for("the driver ends", limit, || player.child.try_wait().unwrap())
    }));
    let said = fs::read_to_string(&said).unwrap();
    assert!(ended.is_ok_and(|status| status.success()), "{said}");
    let root = player.folder.path().canonicalize().unwrap();
    wait_until("no mount is left", || mounts_below(&root).is_empty());
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                let name = stringify!($name);
                play(name, "fs", &[name], LIMIT);
            }
        )*
    };
}

scenarios! {
    memory_of_a_client_shows_its_state_and_moves_forward
    what_is_closed_cannot_be_read_and_the_rest_can
    a_child_of_a_client_sees_nothing_and_does_not_disturb_it
    a_client_that_goes_back_is_refused_and_ends
    a_client_of_an_old_state_reads_all_blocks_while_others_commit
    many_files_and_mappings_of_one_client_move_together
    commits_are_seen_in_head_and_stay_under_their_revisions
    a_file_that_was_filled_before_the_server_started_is_followed
    blocks_in_chunks_are_dropped_and_kept_as_those_in_one_piece
    a_hole_that_becomes_data_is_dropped_alone
    a_page_anywhere_in_a_block_brings_all_of_it_and_nothing_else
    blocks_of_other_sizes_are_served_too
    reads_at_and_behind_the_end_are_empty
    a_file_that_becomes_shorter_is_served_on
    names_that_are_none_are_refused_by_the_right_error
    a_state_of_the_future_is_there_as_soon_as_head_is
    the_tree_has_the_modes_and_sizes_of_its_kind
    a_file_of_a_revision_has_the_time_of_its_object
    times_are_those_of_tids
    an_epoch_of_a_file_in_use_ends_all
    another_block_size_of_a_file_in_use_ends_all
    what_was_committed_before_the_server_started_is_read_dropped_and_pinned
    an_object_that_is_no_block_is_an_error_for_that_block_alone
    a_client_that_never_reads_its_link_when_it_sets_a_watch_up_is_killed_in_time
    a_client_that_never_reads_its_link_when_another_reads_is_killed_in_time
    a_client_that_never_answers_when_it_sets_a_watch_up_is_killed_in_time
    a_client_that_never_answers_when_another_reads_is_killed_in_time
    a_client_that_leaves_instead_of_an_answer_when_it_sets_a_watch_up_is_not_counted_as_killed
    a_client_that_leaves_instead_of_an_answer_when_another_reads_is_not_counted_as_killed
    a_client_that_closes_its_link_instead_of_an_answer_when_it_sets_a_watch_up_is_killed_in_time
    a_client_that_closes_its_link_instead_of_an_answer_when_another_reads_is_killed_in_time
    a_client_that_answers_nak_when_it_sets_a_watch_up_is_killed_in_time
    a_client_that_answers_nak_when_another_reads_is_killed_in_time
    the_client_finds_the_server_by_its_process_and_mount
    numbers_are_zero_at_the_start_and_gauges_at_the_end
    options_are_written_as_go_does
    a_wrong_command_line_ends_with_2
    a_database_that_cannot_be_opened_ends_it_before_it_mounts
    a_url_with_commas_and_blanks_is_the_source_of_the_mount_byte_for_byte
    fusermount_ends_it_cleanly_and_the_next_one_starts
    a_second_server_at_the_mount_point_ends_and_the_first_goes_on
    of_servers_that_start_at_once_one_serves
    autoexit_ends_it_when_nobody_uses_it
    it_stays_without_autoexit
    sigquit_ends_the_process
    sigterm_unmounts_and_ends_it
    a_crash_is_seen_by_who_has_files_open_and_the_next_server_starts_after_an_unmount
    a_connection_that_is_aborted_ends_the_process
    an_empty_database_is_served_and_followed
    zhead_says_each_commit_once_to_each_that_reads_it
    a_zhead_that_nobody_reads_holds_up_nothing
    zhead_is_only_there_when_debug_is_said
    commits_made_while_nobody_served_are_there_at_the_start
    a_writer_that_packs_does_not_disturb_head
    a_set_up_pins_what_was_read_and_changed_since
    a_watch_that_moves_pins_and_unpins_what_differs
    a_read_pins_for_each_watch_that_is_older
    a_mapping_that_is_moved_while_a_fault_waits_shows_the_old_block
    a_block_that_is_evicted_and_read_again_is_not_pinned_twice
    an_answer_to_a_pin_of_a_watch_that_ended_is_ignored
    a_link_goes_on_without_the_thread_that_opened_it
    hundreds_of_pins_are_owed_at_once_and_acknowledged_in_any_order
    two_files_on_one_link_are_watched_each_for_itself
    one_file_on_many_links_is_watched_as_of_many_states
    a_block_whose_leaf_of_the_tree_is_split_is_not_changed
    an_object_that_two_blocks_and_two_files_share_changes_all_of_them
    random_commits_reads_and_watches_are_as_history_says
    a_read_of_a_link_or_of_zhead_can_be_killed
    a_read_that_waits_for_a_pin_can_be_killed
    a_file_that_nobody_opened_cannot_be_watched
    a_request_that_is_none_is_answered_by_an_error
    a_frame_that_is_none_ends_the_link
    a_frame_without_end_ends_the_link
    bye_and_a_close_without_it_end_a_link
    a_copy_of_the_descriptor_that_is_closed_does_not_end_the_link
    requests_under_way_are_answered_each_on_its_stream
    bye_cancels_a_pin_that_is_owed_without_a_kill
    a_read_goes_on_when_the_link_that_owes_it_a_pin_says_bye
    a_state_from_before_the_server_is_too_far_back
    a_state_is_forgotten_after_a_minute_unless_somebody_works_at_it
    a_state_from_before_the_file_is_an_epoch
    a_watch_does_not_go_back
    a_watch_of_the_future_waits_for_it
}

#[test]
fn scenarios_through_a_zeo_server() {
    let names = if slow() { &[] } else { OVER_ZEO };
    play("scenarios_through_a_zeo_server", "zeo", names, LIMIT_ALL);
}

#[test]
fn each_scenario_of_the_driver_is_a_test() {
    let Some(python) = python::python("each_scenario_of_the_driver_is_a_test") else { return };
    let listed = driver(&python).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut listed: Vec<&str> = listed.lines().collect();
    let mut names = NAMES.to_vec();
    listed.sort_unstable();
    names.sort_unstable();
    assert_eq!(names, listed);
}
