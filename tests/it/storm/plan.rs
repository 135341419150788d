//! What happens in a storm, and when: all of it from the seed.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

/// SLS's times as the storm has them: short, but long enough for a machine with much to do.
pub(crate) const SHORT: &str = "--signature-life-s 3 --late-s 2 --visible-s 2";

/// A storm: a world, and what is done in it, one act after the other.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) shape: &'static str,
    pub(crate) runs: u32,
    pub(crate) days: u32,
    /// Whether SLS refuses repeated numbers, and the ledger knows.
    pub(crate) proven: bool,
    /// Whether Postgres is restarted, so that it must be one of our own.
    pub(crate) restarts: bool,
    pub(crate) switches: Value,
    pub(crate) acts: Vec<Act>,
}

/// Commands, the later ones at the same time as the first, and what disturbs them.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) commands: Vec<String>,
    /// After so many milliseconds each, in their order.
    pub(crate) disturbances: Vec<(u64, Disturbance)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Disturbance {
    /// Of the process that was begun first.
    Kill,
    Interrupt,
    Sleep {
        ms: u64,
    },
    KillSls,
    SlsSleeps {
        ms: u64,
    },
    RestartPostgres,
    CutConnections,
    Split,
    Fault(Value),
    /// One row in so many changes its outputs.
    RowsChange {
        one_in: u32,
    },
    RowsVanish {
        one_in: u32,
    },
    RowsFinish,
    /// Rows that were made long ago and are committed only now.
    RowsCome {
        rows: u32,
    },
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut dice = Dice(StdRng::seed_from_u64(seed));
        let proven = dice.is(2);
        let restarts = dice.is(3);
        let split_groups_ms = dice.is(4).then(|| dice.up_to(10, 60));
        let switches = json!({
            "signature_life_s": 3,
            "seqid": if proven { "honoured" } else { "ignored" },
            "number_recorded": dice.one_of(&["before_quota", "after_quota"]),
            "child_forgets_numbers": dice.is(2),
            "receive_lag_ms": dice.up_to(0, 400),
            "split_groups_ms": split_groups_ms,
            "split_groups_lag_max_ms": split_groups_ms.map(|_| 500),
            "shard_writes_per_s": dice.is(5).then_some(20),
            "older_spelling": dice.is(4),
        });
        let acts = dice.up_to(3, 6);
        Self {
            seed,
            shape: dice.one_of(&["dify-1.10", "dify-1.12", "dify-newest"]),
            runs: dice.up_to(40, 250) as u32,
            days: dice.up_to(1, 30) as u32,
            proven,
            restarts,
            switches,
            acts: (0..=acts).map(|nth| act(&mut dice, nth, restarts)).collect(),
        }
    }
}

fn act(dice: &mut Dice, nth: u64, restarts: bool) -> Act {
    let commands = match dice.up_to(0, if nth == 0 { 4 } else { 11 }) {
        0..3 => vec![run(dice)],
        3..6 => vec![run(dice), format!("{} --join", run(dice))],
        6 => vec![format!("verify --level content {SHORT}")],
        7 => vec![format!("verify --level content {SHORT}"), run(dice)],
        8 => vec!["repair --execute".to_owned()],
        9 => vec!["purge --older-than 0h --execute --yes".to_owned()],
        10 => vec!["restore --since 2000-01-01 --execute".to_owned()],
        _ => vec![format!("audit {SHORT}")],
    };
    let disturbances = dice.up_to(0, 5);
    let one = |dice: &mut Dice| (dice.up_to(0, 900), disturbance(dice, restarts));
    Act { commands, disturbances: (0..disturbances).map(|_| one(dice)).collect() }
}

fn run(dice: &mut Dice) -> String {
    let mut run = format!(
        "run {SHORT} --batch-kib {} --workers {} --range-rows {}",
        dice.up_to(64, 128),
        dice.up_to(1, 4),
        dice.up_to(20, 400)
    );
    if dice.is(4) {
        run += &format!(" --max-rows {}", dice.up_to(1, 300));
    }
    if dice.is(5) {
        run += &format!(" --rows-per-s {}", dice.up_to(50, 500));
    }
    run
}

fn disturbance(dice: &mut Dice, restarts: bool) -> Disturbance {
    match dice.up_to(0, 19) {
        0..3 => Disturbance::Kill,
        3 => Disturbance::Interrupt,
        4..6 => Disturbance::Sleep { ms: dice.up_to(50, 8000) },
        6 => Disturbance::KillSls,
        // Less than what a request may be late.
        7 => Disturbance::SlsSleeps { ms: dice.up_to(50, 500) },
        8 if restarts => Disturbance::RestartPostgres,
        8 | 9 => Disturbance::CutConnections,
        10 => Disturbance::Split,
        11 => Disturbance::RowsChange { one_in: dice.up_to(5, 60) as u32 },
        12 => Disturbance::RowsVanish { one_in: dice.up_to(20, 80) as u32 },
        13 => Disturbance::RowsFinish,
        14 => Disturbance::RowsCome { rows: dice.up_to(1, 30) as u32 },
        _ => Disturbance::Fault(fault(dice)),
    }
}

fn fault(dice: &mut Dice) -> Value {
    let kind = dice.one_of(&["put", "put", "put", "pull", "cursor", "shards", "admin", "search"]);
    let refuse = |status: u32, code: &str| json!({"refuse": {"status": status, "code": code, "message": "the storm says so"}});
    let action = match dice.up_to(0, 12) {
        0 => json!("cut_before"),
        1 => json!("cut_after"),
        2 => json!("cut_middle"),
        3 => json!({"delay_ms": dice.up_to(10, 1500)}),
        4 if kind == "put" => json!({"store_late_ms": {
            "after_ms": dice.up_to(10, 800), "answer": "cut"}}),
        5 => json!({"hold_before": {"then_cut": dice.is(2)}}),
        6 => json!({"hold_after": {"then_cut": dice.is(2)}}),
        7 => json!("no_request_id"),
        8 => json!("html"),
        9 => refuse(403, "WriteQuotaExceed"),
        10 => refuse(503, "ServerBusy"),
        11 if kind == "put" => refuse(400, "PostBodyInvalid"),
        _ => refuse(500, "InternalServerError"),
    };
    let mut fault = json!({"kind": kind, "nth": dice.up_to(1, 8), "action": action});
    match dice.is(3) {
        true => {
            fault["probability"] = json!(0.3);
            fault["seed"] = json!(dice.up_to(0, 1 << 30));
        }
        false => fault["times"] = json!(dice.up_to(1, 4)),
    }
    fault
}

/// The random numbers of a seed.
struct Dice(StdRng);

impl Dice {
    fn up_to(&mut self, least: u64, most: u64) -> u64 {
        self.0.random_range(least..=most)
    }

    /// One time in so many.
    fn is(&mut self, one_in: u64) -> bool {
        self.up_to(1, one_in) == 1
    }

    fn one_of(&mut self, all: &[&'static str]) -> &'static str {
        all[self.0.random_range(0..all.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        let text = |seed| format!("{:?}", Plan::of(seed));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }
}
