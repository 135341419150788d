//! Cuts time into windows that one query on SLS can answer. Pure.

use std::collections::BTreeMap;

use crate::record::day::{DAY_S, Day};

/// A stretch of log times, `[from, to)` in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: i64,
    pub to: i64,
}

/// A query of standard SQL reads 400 MB (limits of query and analysis); an id and a source are
/// about 60 bytes.
const WINDOW_ROWS_MAX: u64 = 1_000_000;

/// Days in one query, so that an empty decade is no decade of queries and a full one no lottery.
const WINDOW_DAYS_MAX: usize = 31;

/// SLS may show a log at an earlier second of the same minute, so windows end with minutes.
pub const WINDOW_S_MIN: i64 = 60;

/// The windows that cover `[from, to)`, given about how many rows each day has: whole days, many
/// where there are few rows.
pub fn plan(rows: &BTreeMap<Day, u64>, from: i64, to: i64) -> Vec<Window> {
    let mut windows = Vec::new();
    let (Some(first), Some(last)) = (rows.keys().next(), rows.keys().next_back()) else {
        return push(windows, from, to);
    };
    windows = push(windows, from, first.unix_s().min(to));
    let (mut begin, mut taken, mut day) = (first.unix_s().max(from), 0, *first);
    while day <= *last {
        let end = day.next().unix_s();
        taken += rows.get(&day).copied().unwrap_or(0);
        let next = rows.get(&day.next()).copied().unwrap_or(0);
        let days = (end - begin) / DAY_S;
        if taken + next > WINDOW_ROWS_MAX || days as usize >= WINDOW_DAYS_MAX || day == *last {
            windows = push(windows, begin, end.min(to));
            (begin, taken) = (end, 0);
        }
        day = day.next();
    }
    push(windows, last.next().unix_s().max(from), to)
}

/// Two halves of a window, on whole minutes, hours or days; `None` if it is as small as can be.
pub fn halves(window: Window) -> Option<[Window; 2]> {
    let Window { from, to } = window;
    let length = to - from;
    let grain = [DAY_S, 3600, WINDOW_S_MIN].into_iter().find(|grain| length > *grain)?;
    // The first whole grain behind the middle, or the last one before the end.
    let middle = (from + length / 2).div_euclid(grain) * grain;
    let middle = if middle > from { middle } else { middle + grain };
    (middle < to).then_some([Window { from, to: middle }, Window { from: middle, to }])
}

/// The days that a window touches.
pub fn days(window: Window) -> impl Iterator<Item = Day> {
    let last = Day::of_unix_s(window.to - 1);
    let mut next = Day::of_unix_s(window.from);
    std::iter::from_fn(move || {
        let day = next;
        next = next.next();
        (day <= last).then_some(day)
    })
}

fn push(mut windows: Vec<Window>, from: i64, to: i64) -> Vec<Window> {
    if from < to {
        windows.push(Window { from, to });
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(number: i32) -> Day {
        Day::from_postgres(number)
    }

    fn of(rows: &[(i32, u64)]) -> Vec<(i64, i64)> {
        let rows = rows.iter().map(|(number, rows)| (day(*number), *rows)).collect();
        let begin = day(0).unix_s();
        let windows = plan(&rows, 0, day(1000).unix_s());
        // Without gap, without overlap.
        assert_eq!(windows.first().map(|window| window.from), Some(0));
        assert!(windows.windows(2).all(|pair| pair[0].to == pair[1].from), "{windows:?}");
        assert_eq!(windows.last().map(|window| window.to), Some(day(1000).unix_s()));
        let in_days = |at: i64| (at - begin).div_euclid(DAY_S);
        windows.iter().map(|window| (in_days(window.from), in_days(window.to))).collect()
    }

    #[test]
    fn windows_are_whole_days_with_not_too_many_rows() {
        assert_eq!(of(&[]), [(-10_957, 1000)]);
        assert_eq!(of(&[(5, 1), (7, 1)]), [(-10_957, 5), (5, 8), (8, 1000)]);
        let full = [(5, 600_000), (6, 300_000), (7, 300_000), (8, 2_000_000), (9, 1)];
        assert_eq!(of(&full), [(-10_957, 5), (5, 7), (7, 8), (8, 9), (9, 10), (10, 1000)]);
        assert_eq!(of(&[(0, 1), (40, 1)]), [(-10_957, 0), (0, 31), (31, 41), (41, 1000)]);
    }

    #[test]
    fn halves_meet_on_whole_days_hours_and_minutes() {
        let begin = day(0).unix_s();
        let halves = |from: i64, to: i64| {
            let window = Window { from: begin + from, to: begin + to };
            let [first, second] = halves(window)?;
            assert_eq!((first.from, first.to, second.to), (window.from, second.from, window.to));
            Some(first.to - begin)
        };
        assert_eq!(halves(0, 4 * DAY_S), Some(2 * DAY_S));
        assert_eq!(halves(0, DAY_S), Some(DAY_S / 2));
        assert_eq!(halves(0, 3600), Some(1800));
        assert_eq!(halves(0, 120), Some(60));
        assert_eq!(halves(30, 100), Some(60));
        assert_eq!(halves(60, 120), None);
        assert_eq!(halves(0, 1), None);
        // However often it is halved, it ends.
        let mut window = Window { from: 0, to: day(9000).unix_s() };
        let mut times = 0;
        while let Some([_, second]) = super::halves(window) {
            window = second;
            times += 1;
        }
        assert!(times < 60 && window.to - window.from <= WINDOW_S_MIN, "{times} {window:?}");
    }

    #[test]
    fn a_window_touches_the_days_it_has_a_second_of() {
        let touched = |from, to| days(Window { from, to }).count();
        let begin = day(3).unix_s();
        assert_eq!(touched(begin, begin + DAY_S), 1);
        assert_eq!(touched(begin, begin + DAY_S + 1), 2);
        assert_eq!(touched(begin - 1, begin + 1), 2);
    }
}
