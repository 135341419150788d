//! Transcodes JSON text from Python's ASCII spelling (`\u4e2d`) to UTF-8, without parsing it.
//!
//! Dify's SQL writers call `json.dumps(x)`, its LogStore writer `json.dumps(x, ensure_ascii=False)`.
//! The two texts differ only in how characters from U+007F on are spelled, so big numbers, `NaN`,
//! key order and duplicate keys survive where parsing and printing again would change them. What
//! stays escaped: U+0000 to U+007E, which both spell alike, and lone surrogates, which UTF-8 does
//! not have.
//!
//! One pass validates while it copies. JSON is what Python's `json.loads` takes for it: RFC 8259 and
//! `NaN`, `Infinity`, `-Infinity`.

/// Transcodes texts; what it keeps between them is memory.
#[derive(Default)]
pub struct Transcoder {
    nest: Nest,
}

impl Transcoder {
    /// Appends `text` transcoded to `out` and gives true; or, when it is not JSON, appends it
    /// unchanged and gives false. Never appends more bytes than `text` has. Memory: one bit a level
    /// of nesting.
    pub fn transcode(&mut self, text: &str, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.reserve(text.len());
        self.nest.clear();
        let mut scanner =
            Scanner { text: text.as_bytes(), at: 0, copied: 0, nest: &mut self.nest, out };
        if scanner.document().is_some() {
            scanner.copy_up_to_here();
            return true;
        }
        out.truncate(start);
        out.extend_from_slice(text.as_bytes());
        false
    }
}

/// Reads `text` from `at` on. Its functions give `None` where the text is not JSON.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    /// What is before this is in `out`: text is copied in runs, from one changed escape to the next.
    copied: usize,
    nest: &'a mut Nest,
    out: &'a mut Vec<u8>,
}

impl Scanner<'_> {
    /// Reads the whole text: one value.
    fn document(&mut self) -> Option<()> {
        loop {
            match self.next_token()? {
                b'{' => {
                    if !self.take_token(b'}') {
                        self.nest.open(true);
                        self.key()?;
                        continue;
                    }
                }
                b'[' => {
                    if !self.take_token(b']') {
                        self.nest.open(false);
                        continue;
                    }
                }
                first => self.scalar(first)?,
            }
            if self.after_value()? {
                return Some(());
            }
        }
    }

    /// Reads on after a complete value: true at the end of the text, false where another value must
    /// follow.
    #[inline]
    fn after_value(&mut self) -> Option<bool> {
        while let Some(in_object) = self.nest.innermost() {
            match (self.next_token()?, in_object) {
                (b',', true) => {
                    self.key()?;
                    return Some(false);
                }
                (b',', false) => return Some(false),
                (b'}', true) | (b']', false) => self.nest.close(),
                _ => return None,
            }
        }
        self.skip_whitespace();
        (self.at == self.text.len()).then_some(true)
    }

    /// Reads an object's key and its colon.
    #[inline]
    fn key(&mut self) -> Option<()> {
        if self.next_token()? != b'"' {
            return None;
        }
        self.string()?;
        (self.next_token()? == b':').then_some(())
    }

    /// Reads the rest of a string, number or word that begins with `first`.
    #[inline]
    fn scalar(&mut self, first: u8) -> Option<()> {
        match first {
            b'"' => self.string(),
            b'0'..=b'9' => self.number(first),
            b'-' => match self.next_byte()? {
                b'I' => self.word(b"nfinity"),
                digit => self.number(digit),
            },
            b't' => self.word(b"rue"),
            b'f' => self.word(b"alse"),
            b'n' => self.word(b"ull"),
            b'N' => self.word(b"aN"),
            b'I' => self.word(b"nfinity"),
            _ => None,
        }
    }

    /// Reads the rest of a string, its closing quote included.
    #[inline]
    fn string(&mut self) -> Option<()> {
        loop {
            self.at = skip_plain(self.text, self.at);
            match self.text.get(self.at)? {
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                // Escapes come in rows: a Chinese text is nothing else.
                b'\\' => {
                    while self.text.get(self.at) == Some(&b'\\') {
                        self.escape()?;
                    }
                }
                _control_character => return None,
            }
        }
    }

    /// Reads the escape at `at`.
    #[inline]
    fn escape(&mut self) -> Option<()> {
        match self.text.get(self.at + 1)? {
            b'u' => self.unicode_escape(),
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                self.at += 2;
                Some(())
            }
            _ => None,
        }
    }

    /// Reads the `\uXXXX` at `at`, and the one after it if they are a surrogate pair.
    #[inline]
    fn unicode_escape(&mut self) -> Option<()> {
        let unit = code_unit(self.text, self.at)?;
        let low = match unit {
            0xd800..0xdc00 => code_unit(self.text, self.at + 6),
            _ => None,
        };
        let (character, len) = match (unit, low) {
            (0..0x7f, _) => (None, 6),
            (_, Some(low @ 0xdc00..0xe000)) => {
                (char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)), 12)
            }
            // A lone surrogate is not a char, and stays as it is spelled.
            _ => (char::from_u32(unit), 6),
        };
        if let Some(character) = character {
            self.copy_up_to_here();
            self.out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            self.copied = self.at + len;
        }
        self.at += len;
        Some(())
    }

    /// Reads the rest of a number whose first digit is `digit`.
    #[inline]
    fn number(&mut self, digit: u8) -> Option<()> {
        match digit {
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return None,
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.text.get(self.at) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    /// Reads one digit or more.
    #[inline]
    fn digits(&mut self) -> Option<()> {
        self.text.get(self.at).filter(|byte| byte.is_ascii_digit())?;
        self.skip_digits();
        Some(())
    }

    #[inline]
    fn skip_digits(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    #[inline]
    fn word(&mut self, rest: &[u8]) -> Option<()> {
        let found = self.text[self.at..].starts_with(rest);
        self.at += rest.len();
        found.then_some(())
    }

    /// Skips whitespace and reads the byte after it.
    #[inline]
    fn next_token(&mut self) -> Option<u8> {
        self.skip_whitespace();
        self.next_byte()
    }

    /// Skips whitespace, and `wanted` too if it comes next; whether it does.
    #[inline]
    fn take_token(&mut self, wanted: u8) -> bool {
        self.skip_whitespace();
        let found = self.text.get(self.at) == Some(&wanted);
        self.at += usize::from(found);
        found
    }

    #[inline]
    fn next_byte(&mut self) -> Option<u8> {
        let byte = *self.text.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    #[inline]
    fn copy_up_to_here(&mut self) {
        self.out.extend_from_slice(&self.text[self.copied..self.at]);
        self.copied = self.at;
    }
}

/// Where the next quote, backslash or control character stands at or after `at`; else the end.
#[inline]
fn skip_plain(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGHS: u64 = ONES << 7;
    // Zero bytes get their high bit set. A borrow can set wrong bits, but only above a right one.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    while let Some(chunk) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quotes = zeros(word ^ (ONES * u64::from(b'"')));
        let backslashes = zeros(word ^ (ONES * u64::from(b'\\')));
        let controls = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let found = quotes | backslashes | controls;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while text.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20)) {
        at += 1;
    }
    at
}

/// The number that the `\uXXXX` at `at` spells; `None` if none stands there.
#[inline]
fn code_unit(text: &[u8], at: usize) -> Option<u32> {
    let [b'\\', b'u', digits @ ..] = text.get(at..)?.first_chunk::<6>()? else {
        return None;
    };
    let unit = digits.iter().fold(0, |unit, digit| (unit << 4) | HEX[usize::from(*digit)]);
    (unit < NOT_HEX).then_some(unit)
}

/// Above every code unit, and still there after three more digits.
const NOT_HEX: u32 = 0x10000;

/// The value of each hexadecimal digit.
const HEX: [u32; 256] = {
    let mut table = [NOT_HEX; 256];
    let mut value = 0;
    while value < 16 {
        table[b"0123456789abcdef"[value] as usize] = value as u32;
        table[b"0123456789ABCDEF"[value] as usize] = value as u32;
        value += 1;
    }
    table
};

/// The open brackets, one bit each: whether it is an object's.
#[derive(Default)]
struct Nest {
    /// The innermost 64 or fewer; the lowest bit is the innermost.
    bits: u64,
    depth: usize,
    /// The outer ones, 64 a word.
    outer: Vec<u64>,
}

impl Nest {
    fn clear(&mut self) {
        self.depth = 0;
        self.outer.clear();
    }

    #[inline]
    fn innermost(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.bits & 1 == 1)
    }

    #[inline]
    fn open(&mut self, is_object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.bits);
        }
        self.bits = (self.bits << 1) | u64::from(is_object);
        self.depth += 1;
    }

    #[inline]
    fn close(&mut self) {
        self.bits >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.bits = self.outer.pop().expect("a word was pushed at this depth");
        }
    }
}

#[cfg(test)]
mod tests;
