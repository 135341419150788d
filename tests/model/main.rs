//! The protocol that keeps rows from being lost or doubled, walked through in a model: every order
//! of steps, for few rows, few faults and two processes.
//!
//! ```text
//! state     rows, SLS, the ledger, two processes with two threads each
//! machine   time, SLS, Postgres, processes that come and go, faults
//! setup     which worlds there are
//! threads   the uploader, and what all do that send; resolver: what becomes of open batches
//! ledger    its transactions
//! deciders  calls the code's own rules
//! search    the walk
//! ```
//!
//! Steps bear the names of the functions that they stand for. In every state a row is in SLS once
//! at most, and accounted for once; and from every state there is a way to the end at which every
//! settled row is stored. With a bug put in, the walk must find what it does.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod deciders;
mod ledger;
mod machine;
mod resolver;
mod search;
mod setup;
mod state;
mod threads;

use crate::machine::Protocol;
use crate::search::walk;
use crate::setup::At::{Finished, Nowhere, Running};
use crate::setup::Bug::{
    ClockAlone, HoldLeftOpen, LagForgotten, NewLane, NoSecondLook, PositionOnAcknowledgement,
    RowsNotLookedUp, WokenSignsNow,
};
use crate::setup::Fault::{
    Crash, Duplicate, Failover, Late, LostAnswer, LostCommit, Pause, RowChanges, RowVanishes, Split,
};
use crate::setup::{Bug, Setup};

/// One process, rows that have finished, numbers proven, nothing goes wrong.
const PLAIN: Setup = Setup {
    name: "",
    faults: 0,
    kinds: &[],
    proven: true,
    processes: 1,
    lag: false,
    rows: [Finished, Finished],
    has_second_pass: false,
    bugs: &[],
};

#[track_caller]
fn holds(setup: Setup) {
    let name = setup.name;
    let walk = walk(&Protocol::new(setup));
    eprintln!("{name}: {walk}");
    assert!(walk.found.is_none(), "{name}: {walk}");
}

/// The walk finds that a row is doubled, or whatever `wrong` says.
#[track_caller]
fn finds(bugs: &'static [Bug], setup: Setup, wrong: &str) {
    let walk = walk(&Protocol::new(Setup { bugs, ..setup }));
    eprintln!("{bugs:?}: {walk}");
    let what = walk.found.as_ref().map_or("nothing", |(_, what)| what.as_str());
    assert!(what.contains(wrong), "{bugs:?}: expected `{wrong}`: {walk}");
}

#[test]
fn the_code_takes_for_stored_what_sls_says_and_nothing_else() {
    assert!(deciders::stored_is_stored());
}

#[test]
fn nothing_goes_wrong() {
    holds(Setup {
        name: "nothing goes wrong",
        processes: 2,
        rows: [Finished, Running],
        has_second_pass: true,
        ..PLAIN
    });
}

/// One process, and what goes wrong on the way to SLS and with rows.
const SENDING: Setup = Setup {
    name: "sending, numbers proven",
    faults: 2,
    kinds: &[Crash, LostAnswer, Late, Duplicate, RowChanges],
    ..PLAIN
};

#[test]
fn answers_are_lost_and_rows_change() {
    holds(SENDING);
}

#[test]
fn answers_are_lost_and_numbers_are_not_proven() {
    // Without numbers nothing protects from a proxy that sends a request twice.
    let kinds = &[Crash, LostAnswer, RowChanges, RowVanishes];
    holds(Setup { name: "sending, numbers not proven", proven: false, kinds, ..SENDING });
}

/// Two processes that are killed, sleep and wake.
const TWO: Setup = Setup {
    name: "two processes",
    faults: 2,
    kinds: &[Crash, Pause, LostAnswer, Duplicate],
    processes: 2,
    rows: [Finished, Nowhere],
    ..PLAIN
};

#[test]
fn two_processes_die_and_sleep() {
    holds(TWO);
}

/// Readers see what they like.
const LAGGING: Setup = Setup {
    name: "lag without bound",
    faults: 1,
    kinds: &[Crash, LostAnswer],
    lag: true,
    ..SENDING
};

#[test]
fn readers_lag_without_bound() {
    holds(LAGGING);
}

const SPLIT: Setup = Setup { name: "split", kinds: &[Split, LostAnswer, Late, Crash], ..SENDING };

#[test]
fn a_shard_is_split_and_the_child_forgets() {
    holds(SPLIT);
}

/// A row is held, finishes, is read again, and read once more.
const HOLDS: Setup = Setup {
    name: "holds and a second pass",
    faults: 3,
    kinds: &[Crash, LostCommit, RowVanishes],
    rows: [Running, Nowhere],
    has_second_pass: true,
    ..SENDING
};

#[test]
fn a_held_row_is_tried_again_and_a_second_pass_comes() {
    holds(HOLDS);
}

const FAILOVER: Setup = Setup {
    name: "failover and audit",
    kinds: &[Failover, LostAnswer, Crash, Pause],
    rows: [Finished, Nowhere],
    faults: 3,
    ..SENDING
};

#[test]
fn the_ledger_fails_over_and_is_audited() {
    holds(FAILOVER);
}

const TWICE: &str = "is in SLS twice";

#[test]
fn a_new_lane_after_a_used_number_is_found_out() {
    finds(&[NewLane], SENDING, TWICE);
}

#[test]
fn a_woken_process_that_signs_now_is_found_out() {
    finds(&[WokenSignsNow], Setup { kinds: &[Pause, Crash], ..TWO }, TWICE);
}

#[test]
fn a_position_that_moves_on_acknowledgement_is_found_out() {
    finds(&[PositionOnAcknowledgement], SENDING, "is accounted for");
}

#[test]
fn a_hold_left_open_is_found_out() {
    finds(&[HoldLeftOpen], HOLDS, "is accounted for");
}

#[test]
fn giving_up_without_a_second_look_is_found_out() {
    finds(&[NoSecondLook], SENDING, TWICE);
}

#[test]
fn the_clock_alone_is_found_out() {
    finds(&[ClockAlone], LAGGING, TWICE);
}

#[test]
fn a_look_that_knows_no_earlier_lag_is_found_out() {
    finds(&[LagForgotten], LAGGING, TWICE);
}

#[test]
fn rows_that_are_not_looked_up_are_found_out() {
    // The position alone does not keep a second pass from reading them again.
    finds(&[RowsNotLookedUp], Setup { kinds: &[], ..HOLDS }, "is accounted for");
}
