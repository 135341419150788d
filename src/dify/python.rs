//! How Python prints a value: Dify's writer calls `str()` and `isoformat()`.

use std::fmt::Write;

use uuid::Uuid;

use crate::record::timestamp::Timestamp;

/// A printed value, on the stack.
#[derive(Clone, Copy)]
pub struct Printed {
    /// 36 is a UUID; a float takes 24 at most, a time 26.
    bytes: [u8; 36],
    len: usize,
}

impl Printed {
    const EMPTY: Self = Self { bytes: [0; 36], len: 0 };

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends the last `width` decimal digits of `value`, leading zeros too.
    fn push_padded(&mut self, mut value: u32, width: usize) {
        for byte in self.bytes[self.len..self.len + width].iter_mut().rev() {
            *byte = b'0' + (value % 10) as u8;
            value /= 10;
        }
        self.len += width;
    }
}

impl Write for Printed {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// `str(uuid)`: lower case, with hyphens.
pub fn uuid(value: Uuid) -> Printed {
    let mut printed = Printed { bytes: [0; 36], len: 36 };
    value.hyphenated().encode_lower(&mut printed.bytes);
    printed
}

/// `str(int)`.
pub fn int(value: i64) -> Printed {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    let mut printed = Printed::EMPTY;
    if value < 0 {
        printed.push(b"-");
    }
    printed.push(&digits[at..]);
    printed
}

/// `str(float)`: the fewest digits that read back as the same number, with an exponent below 1e-4
/// and from 1e16 on (CPython's `float_repr_style` "short").
pub fn float(value: f64) -> Printed {
    let mut printed = Printed::EMPTY;
    if value.is_nan() {
        printed.push(b"nan");
        return printed;
    }
    if value.is_sign_negative() {
        printed.push(b"-");
    }
    if value.is_infinite() {
        printed.push(b"inf");
        return printed;
    }
    let scientific = shortest(value.abs());
    let e = scientific.as_bytes().iter().position(|byte| *byte == b'e').expect("`{:e}` writes it");
    let (mantissa, exponent) = (&scientific.as_bytes()[..e], &scientific.as_bytes()[e + 1..]);
    let exponent: i32 = std::str::from_utf8(exponent)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .expect("`{:e}` ends with an integer");
    let (first, rest) = (&mantissa[..1], mantissa.get(2..).unwrap_or_default());
    match exponent {
        -4..0 => {
            printed.push(&b"0.000"[..(1 - exponent) as usize]);
            printed.push(first);
            printed.push(rest);
        }
        0..16 => {
            let (whole, fraction) = rest.split_at(rest.len().min(exponent as usize));
            printed.push(first);
            printed.push(whole);
            printed.push(&b"000000000000000"[..exponent as usize - whole.len()]);
            printed.push(b".");
            printed.push(if fraction.is_empty() { b"0" } else { fraction });
        }
        _ => {
            printed.push(first);
            if !rest.is_empty() {
                printed.push(b".");
                printed.push(rest);
            }
            printed.push(if exponent < 0 { b"e-" } else { b"e+" });
            let exponent = exponent.unsigned_abs();
            printed.push_padded(exponent, if exponent < 100 { 2 } else { 3 });
        }
    }
    printed
}

/// The fewest digits that read back as `value`, of these the nearest, of two equally near the even
/// one; as `1.2345e-7`.
fn shortest(value: f64) -> Printed {
    const INFALLIBLE: &str = "writing to an array does not fail";
    let mut shortest = Printed::EMPTY;
    write!(shortest, "{value:e}").expect(INFALLIBLE);
    let read = |printed: &Printed| std::str::from_utf8(printed.as_bytes()).ok()?.parse().ok();
    let digits = shortest.as_bytes().iter().take_while(|byte| **byte != b'e').count() - 1;
    // Of two equally near ones Rust takes the upper. Only texts of more than 15 digits can be
    // equally near and read back alike (`f64::DIGITS`).
    if digits > f64::DIGITS as usize {
        let mut nearest = Printed::EMPTY;
        write!(nearest, "{value:.*e}", digits - 1).expect(INFALLIBLE);
        // Just below a power of two floats are closer: there the nearest may be another float's.
        if read(&nearest) == Some(value) {
            return nearest;
        }
    }
    shortest
}

/// Microseconds since 1970 of 0001-01-01T00:00:00 and of 10000-01-01T00:00:00.
const YEAR_1_US: i64 = -62_135_596_800_000_000;
const YEAR_10000_US: i64 = 253_402_300_800_000_000;
const DAY_US: i64 = 86_400_000_000;

/// `datetime.isoformat()`: `YYYY-MM-DDTHH:MM:SS`, with `.ffffff` only if it is not zero. `None`
/// outside of the years 1 to 9999, which Python does not have.
pub fn isoformat(time: Timestamp) -> Option<Printed> {
    let unix_us = time.unix_us().filter(|us| (YEAR_1_US..YEAR_10000_US).contains(us))?;
    let (year, month, day) = civil(unix_us.div_euclid(DAY_US));
    let of_day_us = unix_us.rem_euclid(DAY_US);
    let (of_day_s, us) = ((of_day_us / 1_000_000) as u32, (of_day_us % 1_000_000) as u32);
    let mut printed = Printed::EMPTY;
    printed.push_padded(year, 4);
    for (before, value) in [
        (b"-", month),
        (b"-", day),
        (b"T", of_day_s / 3600),
        (b":", of_day_s / 60 % 60),
        (b":", of_day_s % 60),
    ] {
        printed.push(before);
        printed.push_padded(value, 2);
    }
    if us != 0 {
        printed.push(b".");
        printed.push_padded(us, 6);
    }
    Some(printed)
}

/// Year, month and day of a day since 1970-01-01, from the year 1 on: Howard Hinnant's
/// `civil_from_days`, which counts years from March so that the leap day comes last.
fn civil(unix_days: i64) -> (u32, u32, u32) {
    const DAYS_BEFORE_1970: i64 = 719_468; // From 0000-03-01.
    const ERA_DAYS: u32 = 146_097; // 400 years.
    let days = u32::try_from(unix_days + DAYS_BEFORE_1970).expect("the year is 1 or later");
    let (era, of_era) = (days / ERA_DAYS, days % ERA_DAYS);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u32::from(month <= 2), month, day)
}

#[cfg(test)]
pub(crate) mod tests;
