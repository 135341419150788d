//! Printed values by tables, against jiff, and against Python itself.

use std::io::{Seek, Write};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};

use super::*;

/// Runs a Python script with `input` on its stdin; gives its stdout. `python3` must be on PATH.
pub(crate) fn run_python(script: &str, input: &str) -> String {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input.as_bytes()).unwrap();
    file.rewind().unwrap();
    let output = Command::new("python3")
        .args(["-c", script])
        .stdin(Stdio::from(file))
        .output()
        .expect("python3, which the tests need, is not on PATH");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(printed: Printed) -> String {
    String::from_utf8(printed.as_bytes().to_vec()).unwrap()
}

const FLOATS: [(f64, &str); 32] = [
    (0.0, "0.0"),
    (-0.0, "-0.0"),
    (1.0, "1.0"),
    (-1.5, "-1.5"),
    (0.1, "0.1"),
    (0.30000000000000004, "0.30000000000000004"),
    (100.0, "100.0"),
    (123.456, "123.456"),
    (8.632569, "8.632569"),
    (0.001, "0.001"),
    (0.0001, "0.0001"),
    (0.00012345678901234567, "0.00012345678901234567"),
    (0.00001, "1e-05"),
    (0.000015, "1.5e-05"),
    (1e-10, "1e-10"),
    (1e-100, "1e-100"),
    (5e-324, "5e-324"),
    (2.2250738585072014e-308, "2.2250738585072014e-308"),
    (1e15, "1000000000000000.0"),
    (1234567890123456.0, "1234567890123456.0"),
    (9999999999999998.0, "9999999999999998.0"),
    (8_866_905_148_735_834.0 / 8.0, "1108363143591979.2"),
    (5.684341886080802e-14, "5.684341886080802e-14"),
    (1e16, "1e+16"),
    (12345678901234567.0, "1.2345678901234568e+16"),
    (1e22, "1e+22"),
    (1e23, "1e+23"),
    (1e100, "1e+100"),
    (1.7976931348623157e308, "1.7976931348623157e+308"),
    (f64::INFINITY, "inf"),
    (f64::NEG_INFINITY, "-inf"),
    (f64::NAN, "nan"),
];

#[test]
fn floats_are_printed_as_python_prints_them() {
    for (value, printed) in FLOATS {
        assert_eq!(text(float(value)), printed);
    }
    assert_eq!(text(float(-f64::NAN)), "nan");
}

#[test]
fn python_prints_the_same_floats() {
    const SCRIPT: &str = "
import struct, sys
for line in sys.stdin:
    print(repr(struct.unpack('>d', bytes.fromhex(line.strip()))[0]))
";
    const SEED: u64 = 20_260_101;
    let mut random = rand::rngs::StdRng::seed_from_u64(SEED);
    let mut values: Vec<f64> = FLOATS.iter().map(|(value, _)| *value).collect();
    values.extend((0..10_000).map(|_| f64::from_bits(random.random())));
    // Durations, which is what Dify's floats are.
    values.extend((0..3_000).map(|_| random.random_range(0..10_000_000_000_i64) as f64 / 1e6));
    values.extend((0..3_000).map(|_| 10_f64.powf(random.random_range(-7.0..19.0))));
    // Two texts of 16 or 17 digits that are equally near.
    values.extend((0..10_000).map(|_| {
        let mantissa = random.random_range(1_i64 << 50..1 << 53) | 1;
        mantissa as f64 / f64::from(1 << random.random_range(1..24))
    }));
    // Where the distance of floats changes.
    values.extend((-1074..1024).map(|exponent| 2_f64.powi(exponent)));
    let lines: Vec<_> = values.iter().map(|value| format!("{:016x}", value.to_bits())).collect();
    let printed = run_python(SCRIPT, &lines.join("\n"));
    assert_eq!(printed.lines().count(), values.len());
    for (value, printed) in values.iter().zip(printed.lines()) {
        assert_eq!(text(float(*value)), printed, "bits {:x}, seed {SEED}", value.to_bits());
    }
}

#[test]
fn integers_and_uuids_are_printed_in_full() {
    for value in [0, 7, -7, 10, 1_735_689_600_123_456_001, i64::MAX, i64::MIN] {
        assert_eq!(text(int(value)), value.to_string());
    }
    let id = "0199ab00-00ff-7000-8000-00000000beef";
    assert_eq!(text(uuid(id.parse().unwrap())), id);
    assert_eq!(text(uuid(Uuid::max())), Uuid::max().to_string());
}

#[test]
fn times_are_printed_in_iso_form() {
    for (unix_us, printed) in [
        (0, Some("1970-01-01T00:00:00")),
        (1, Some("1970-01-01T00:00:00.000001")),
        (-1, Some("1969-12-31T23:59:59.999999")),
        (1_709_210_096_007_000, Some("2024-02-29T12:34:56.007000")),
        (946_684_800_000_000, Some("2000-01-01T00:00:00")),
        (YEAR_1_US, Some("0001-01-01T00:00:00")),
        (YEAR_1_US - 1, None),
        (YEAR_10000_US - 1, Some("9999-12-31T23:59:59.999999")),
        (YEAR_10000_US, None),
        (i64::MAX, None),
        (i64::MIN, None),
    ] {
        let got = isoformat(Timestamp::from_unix_us(unix_us)).map(text);
        assert_eq!(got.as_deref(), printed, "{unix_us}");
    }
    assert!(isoformat(Timestamp::INFINITY).is_none());
    assert!(isoformat(Timestamp::NEG_INFINITY).is_none());
}

#[test]
fn every_day_of_every_year_is_that_of_the_calendar() {
    let mut date = jiff::civil::date(1, 1, 1);
    for day in YEAR_1_US / DAY_US..YEAR_10000_US / DAY_US {
        let (year, month, of_month) = civil(day);
        let wanted = (date.year() as u32, date.month() as u32, date.day() as u32);
        assert_eq!((year, month, of_month), wanted, "day {day}");
        date = date.tomorrow().unwrap_or(date);
    }
    assert_eq!(date, jiff::civil::Date::MAX);
}

proptest! {
    #[test]
    fn a_time_is_printed_as_jiff_reads_it(unix_us in YEAR_1_US..YEAR_10000_US, whole: bool) {
        let unix_us = if whole { unix_us.div_euclid(1_000_000) * 1_000_000 } else { unix_us };
        let printed = text(isoformat(Timestamp::from_unix_us(unix_us)).unwrap());
        let read: jiff::civil::DateTime = printed.parse().unwrap();
        let utc = read.to_zoned(jiff::tz::TimeZone::UTC).unwrap();
        prop_assert_eq!(utc.timestamp().as_microsecond(), unix_us);
        let has_fraction = unix_us % 1_000_000 != 0;
        prop_assert_eq!(printed.len(), if has_fraction { 26 } else { 19 });
    }

    #[test]
    fn a_float_reads_back_as_the_same_number(bits: u64) {
        let value = f64::from_bits(bits);
        prop_assume!(value.is_finite());
        let read: f64 = text(float(value)).parse().unwrap();
        prop_assert_eq!(read.to_bits(), bits);
    }
}
