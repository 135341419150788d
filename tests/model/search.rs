//! Walks through every state that can be reached, the nearest first.
//!
//! Only the states of the edge are kept whole; of the others a fingerprint and the way there. A
//! trace is made by walking that way once more.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::time::{Duration, Instant};

/// A fingerprint is as good as any other hash of it.
#[derive(Default)]
pub(crate) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("fingerprints are numbers")
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// A quick hash of small numbers.
struct Mixer(u64);

impl Mixer {
    #[inline]
    fn mix(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ (mixed >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(number));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.mix(number.into());
    }

    fn write_usize(&mut self, number: usize) {
        self.mix(number as u64);
    }
}

/// A machine whose states are walked through.
pub(crate) trait Machine {
    type State: Clone + Hash + Eq;
    type Step: fmt::Display;

    fn first(&self) -> Self::State;
    /// Every step from `state`, always in the same order.
    fn steps(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;
    /// What must never be, where it is.
    fn broken(&self, state: &Self::State) -> Option<String>;
    /// Whether all is well that should become well.
    fn is_good(&self, state: &Self::State) -> bool;
}

/// What a walk has shown.
pub(crate) struct Walk {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) took: Duration,
    /// The shortest way to something that must not be, and what that is.
    pub(crate) found: Option<(Vec<String>, String)>,
}

impl fmt::Display for Walk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, took, .. } = self;
        write!(f, "{states} states, {steps} steps, {:.1} s", took.as_secs_f64())?;
        let Some((trace, what)) = &self.found else { return Ok(()) };
        write!(f, "; after {} steps {what}:", trace.len())?;
        trace.iter().enumerate().try_for_each(|(nth, step)| write!(f, "\n  {:>2}. {step}", nth + 1))
    }
}

/// Walks through all states of `machine`, until one is broken. With none broken, every state must
/// have a way to a good one.
pub(crate) fn walk<M: Machine>(machine: &M) -> Walk {
    let begun = Instant::now();
    let mut known: HashMap<u64, u32, BuildHasherDefault<AsItIs>> = HashMap::default();
    // Where each state was reached from, and by which of the steps there.
    let mut came_by: Vec<(u32, u16)> = vec![(0, 0)];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut good: Vec<bool> = Vec::new();
    let first = machine.first();
    known.insert(fingerprint(&first), 0);
    let mut edge = vec![(0_u32, first)];
    let mut found = None;
    'walk: while !edge.is_empty() {
        let mut next = Vec::new();
        for (number, state) in edge {
            if let Some(what) = machine.broken(&state) {
                found = Some((trace(machine, &came_by, number), what));
                break 'walk;
            }
            good.resize(good.len().max(number as usize + 1), false);
            good[number as usize] = machine.is_good(&state);
            for (nth, (_, after)) in machine.steps(&state).into_iter().enumerate() {
                let fresh = u32::try_from(came_by.len()).expect("states fit into memory");
                let to = *known.entry(fingerprint(&after)).or_insert(fresh);
                if to == fresh {
                    came_by.push((number, u16::try_from(nth).expect("steps are few")));
                    next.push((fresh, after));
                }
                edges.push((to, number));
            }
        }
        edge = next;
    }
    if found.is_none() {
        let stuck = without_way(&mut edges, good);
        found = stuck.map(|number| {
            (trace(machine, &came_by, number), "no way leads to a good end any more".to_owned())
        });
    }
    Walk { states: came_by.len(), steps: edges.len(), took: begun.elapsed(), found }
}

/// The first state from which no good one can be reached. `edges`: to, from.
fn without_way(edges: &mut [(u32, u32)], mut good: Vec<bool>) -> Option<u32> {
    edges.sort_unstable();
    let mut starts = vec![0_usize; good.len() + 1];
    edges.iter().for_each(|(to, _)| starts[*to as usize + 1] += 1);
    (1..starts.len()).for_each(|nth| starts[nth] += starts[nth - 1]);
    let mut waiting: Vec<usize> = (0..good.len()).filter(|nth| good[*nth]).collect();
    while let Some(to) = waiting.pop() {
        for (_, from) in &edges[starts[to]..starts[to + 1]] {
            if !std::mem::replace(&mut good[*from as usize], true) {
                waiting.push(*from as usize);
            }
        }
    }
    good.iter().position(|is_good| !is_good).map(|nth| u32::try_from(nth).expect("it was a u32"))
}

fn fingerprint(state: &impl Hash) -> u64 {
    let mut hasher = Mixer(0);
    state.hash(&mut hasher);
    hasher.finish()
}

fn trace<M: Machine>(machine: &M, came_by: &[(u32, u16)], mut number: u32) -> Vec<String> {
    let mut choices = Vec::new();
    while number > 0 {
        let (from, nth) = came_by[number as usize];
        choices.push(nth);
        number = from;
    }
    let mut state = machine.first();
    let mut steps = Vec::new();
    for nth in choices.into_iter().rev() {
        let (step, after) = machine.steps(&state).swap_remove(nth as usize);
        steps.push(step.to_string());
        state = after;
    }
    steps
}
