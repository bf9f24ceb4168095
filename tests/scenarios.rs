//! What users of isolation meet, through a real mount, with real processes and mappings: each scenario on a native store
//! and on a ZODB database that grows while it is served.
//!
//! Invariant: which frames come is worked out from a model of the history, and that no frame comes is shown by the
//! answer to a later request. Nothing here is a matter of time but the two tests that say so.
//!
//! Shown elsewhere: a page fault that is remapped while it waits, a cut that is pinned before sizes move, a set-up
//! that pins what was read (`isolation.rs`); bad frames, silence, floods, forks, a client that is killed in its own
//! page fault (`faulty.rs`); which pages of head a commit drops (`mounted.rs`); a client against a server that the
//! test plays (`client/tests`).

#![allow(clippy::unwrap_used)] // a failed step is a failed test

#[path = "scenarios/cache.rs"]
mod cache;
#[path = "scenarios/child.rs"]
mod child;
#[path = "scenarios/client.rs"]
mod client;
#[path = "common/datafs.rs"]
mod datafs;
#[macro_use]
#[path = "common/each_store.rs"]
mod each_store;
#[path = "scenarios/history.rs"]
mod history;
#[path = "common/link.rs"]
mod link;
#[path = "common/live.rs"]
mod live;
#[path = "common/mapping.rs"]
mod mapping;
#[path = "scenarios/pins.rs"]
mod pins;
#[path = "common/puppet.rs"]
mod puppet;
#[path = "scenarios/requests.rs"]
mod requests;
#[path = "common/stage.rs"]
mod stage;
#[path = "scenarios/stuck.rs"]
mod stuck;

// The compiler tells of a scenario that is missing here.
on_each_store! {
    cache:
        a_commit_drops_the_changed_block_of_head_and_nothing_of_revisions,
        a_hole_that_becomes_data_is_all_that_leaves_the_page_cache,
        reads_at_and_behind_the_end_are_short_or_empty_and_pin_nothing;
    client:
        mappings_stay_as_the_file_grows_and_shrinks_until_a_resync,
        who_closes_disturbs_nobody_else,
        what_was_closed_faults_and_the_rest_of_the_process_goes_on,
        a_fork_faults_and_its_parent_goes_on,
        a_killed_server_takes_its_clients_down_and_the_next_one_serves_new_ones;
    pins:
        set_ups_in_any_sequence_pin_what_was_read_and_differs_and_no_more,
        on_access_each_link_is_told_once_what_differs_from_its_revision,
        a_read_that_straddles_two_blocks_waits_for_both_pins,
        no_block_is_pinned_twice_whatever_drops_it_from_the_page_cache;
    requests:
        a_bad_request_is_an_error_and_the_link_lives,
        bye_cancels_a_pin_and_nobody_is_killed,
        a_file_has_no_past_before_it_was_made_and_none_after_it_was_removed,
        a_set_up_ahead_of_head_waits_for_its_commit_and_holds_up_nothing,
        who_waits_for_frames_dies_of_sigkill_within_300_ms,
        two_files_on_one_link_are_two_watches,
        a_server_that_knows_no_past_has_the_pins_from_the_store;
    stuck:
        nothing_waits_for_a_client_that_is_stuck_in_a_pin;
}
