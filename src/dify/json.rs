//! Transcodes JSON text from Python's ASCII spelling (`\u4e2d`) to UTF-8, without parsing it.
//!
//! Dify's SQL writers call `json.dumps(x)`, its LogStore writer calls `json.dumps(x,
//! ensure_ascii=False)`. The two texts differ only in how characters from U+007F on are spelled, so
//! big numbers, `NaN`, key order and duplicate keys survive where parsing and printing again would
//! change them. What stays escaped: U+0000 to U+007E, which both spell alike, and lone surrogates,
//! which UTF-8 does not have.
//!
//! One pass validates while it copies. JSON is what Python's `json.loads` takes for it: RFC 8259
//! and `NaN`, `Infinity`, `-Infinity`.

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
        let text = text.as_bytes();
        self.nest.clear();
        let start = out.len();
        // Written by index: growing a vector piece by piece costs more than filling it twice.
        out.resize(start + text.len(), 0);
        let copy = Copy { text, copied: 0, out: &mut out[start..], written: 0 };
        match (Scanner { text, nest: &mut self.nest, copy }).document() {
            Some(written) => {
                out.truncate(start + written);
                true
            }
            None => {
                out[start..].copy_from_slice(text);
                false
            }
        }
    }
}

/// Reads the text. Its functions take the place where they read on and give the place behind what
/// they have read; or `None` where the text is not JSON.
struct Scanner<'a> {
    text: &'a [u8],
    nest: &'a mut Nest,
    copy: Copy<'a>,
}

impl Scanner<'_> {
    /// Reads the whole text, one value; gives how many bytes were written.
    fn document(mut self) -> Option<usize> {
        let mut at = 0;
        loop {
            let first;
            (first, at) = self.token(at)?;
            at = match first {
                b'"' => self.string(at)?,
                b'{' => match self.token(at)? {
                    (b'}', end) => end,
                    _ => {
                        self.nest.open(true);
                        at = self.key(at)?;
                        continue;
                    }
                },
                b'[' => match self.token(at)? {
                    (b']', end) => end,
                    _ => {
                        self.nest.open(false);
                        continue;
                    }
                },
                _ => self.number_or_word(first, at)?,
            };
            // A value is complete, and with it perhaps the brackets around it.
            loop {
                let Some(in_object) = self.nest.innermost() else {
                    at = skip_whitespace(self.text, at);
                    return (at == self.text.len()).then(|| self.copy.finish());
                };
                let token;
                (token, at) = self.token(at)?;
                match (token, in_object) {
                    (b',', true) => {
                        at = self.key(at)?;
                        break;
                    }
                    (b',', false) => break,
                    (b'}', true) | (b']', false) => self.nest.close(),
                    _ => return None,
                }
            }
        }
    }

    /// Reads an object's key and its colon.
    #[inline]
    fn key(&mut self, at: usize) -> Option<usize> {
        let (b'"', at) = self.token(at)? else { return None };
        let at = self.string(at)?;
        let (b':', at) = self.token(at)? else { return None };
        Some(at)
    }

    /// Reads the rest of a string, its closing quote included.
    #[inline]
    fn string(&mut self, mut at: usize) -> Option<usize> {
        loop {
            at = skip_plain(self.text, at);
            match self.text.get(at)? {
                b'"' => return Some(at + 1),
                // Escapes come in rows: a Chinese text is nothing else.
                b'\\' => {
                    while self.text.get(at) == Some(&b'\\') {
                        at = self.escape(at)?;
                    }
                }
                _control_character => return None,
            }
        }
    }

    /// Reads the escape at `at`; where it becomes a character, those that follow it in a row too.
    #[inline]
    fn escape(&mut self, at: usize) -> Option<usize> {
        let letter = *self.text.get(at + 1)?;
        if letter != b'u' {
            return IS_SHORT_ESCAPE[usize::from(letter)].then_some(at + 2);
        }
        match code_unit(self.text, at)? {
            0..0x7f => Some(at + ESCAPE_LEN),
            high @ 0xd800..0xdc00 => {
                let Some(low @ 0xdc00..0xe000) = code_unit(self.text, at + ESCAPE_LEN) else {
                    // A lone surrogate is no character, and stays as it is spelled.
                    return Some(at + ESCAPE_LEN);
                };
                let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                Some(self.copy.replace_pair(at, code))
            }
            0xdc00..0xe000 => Some(at + ESCAPE_LEN),
            code => Some(self.copy.replace_row(at, code)),
        }
    }

    /// Reads the rest of a number or word that begins with `first`.
    #[inline]
    fn number_or_word(&self, first: u8, at: usize) -> Option<usize> {
        match first {
            b'0'..=b'9' => self.number(first, at),
            b'-' => match self.text.get(at)? {
                b'I' => self.word(b"Infinity", at),
                digit => self.number(*digit, at + 1),
            },
            b't' => self.word(b"rue", at),
            b'f' => self.word(b"alse", at),
            b'n' => self.word(b"ull", at),
            b'N' => self.word(b"aN", at),
            b'I' => self.word(b"nfinity", at),
            _ => None,
        }
    }

    /// Reads the rest of a number whose first digit is `digit`.
    #[inline]
    fn number(&self, digit: u8, mut at: usize) -> Option<usize> {
        match digit {
            b'0' => {}
            b'1'..=b'9' => at = skip_digits(self.text, at),
            _ => return None,
        }
        if self.text.get(at) == Some(&b'.') {
            at = self.digits(at + 1)?;
        }
        if let Some(b'e' | b'E') = self.text.get(at) {
            at += 1;
            if let Some(b'+' | b'-') = self.text.get(at) {
                at += 1;
            }
            at = self.digits(at)?;
        }
        Some(at)
    }

    /// Reads one digit or more.
    #[inline]
    fn digits(&self, at: usize) -> Option<usize> {
        Some(skip_digits(self.text, at)).filter(|end| *end > at)
    }

    #[inline]
    fn word(&self, rest: &[u8], at: usize) -> Option<usize> {
        self.text[at..].starts_with(rest).then_some(at + rest.len())
    }

    /// Skips whitespace and reads the byte behind it.
    #[inline]
    fn token(&self, at: usize) -> Option<(u8, usize)> {
        let at = skip_whitespace(self.text, at);
        Some((*self.text.get(at)?, at + 1))
    }
}

/// Copies the text in runs, from one changed escape to the next.
struct Copy<'a> {
    text: &'a [u8],
    /// What is before this is written.
    copied: usize,
    /// As long as the text, so that it holds whatever becomes of it.
    out: &'a mut [u8],
    written: usize,
}

impl Copy<'_> {
    /// Writes the character `code` in place of the surrogate pair at `at`; gives where that ends.
    fn replace_pair(&mut self, at: usize, code: u32) -> usize {
        self.run_to(at);
        self.written = put_character(self.out, self.written, code);
        self.copied = at + 2 * ESCAPE_LEN;
        self.copied
    }

    /// Writes the character `code` in place of the escape at `at`, and goes on as long as escapes
    /// follow that are one character each; gives where the last one ends.
    fn replace_row(&mut self, mut at: usize, mut code: u32) -> usize {
        self.run_to(at);
        let mut written = self.written;
        loop {
            written = put_character(self.out, written, code);
            at += ESCAPE_LEN;
            match code_unit(self.text, at) {
                Some(next @ (0x7f..0xd800 | 0xe000..)) => code = next,
                _ => break,
            }
        }
        self.written = written;
        self.copied = at;
        at
    }

    /// Writes the rest; gives how many bytes were written.
    fn finish(mut self) -> usize {
        self.run_to(self.text.len());
        self.written
    }

    fn run_to(&mut self, end: usize) {
        // Many runs are short: one move of fixed size is faster than a call.
        const SHORT: usize = 16;
        let len = end - self.copied;
        let short_out = self.out[self.written..].first_chunk_mut::<SHORT>();
        let short_text = self.text[self.copied..].first_chunk::<SHORT>();
        match (short_out, short_text) {
            (Some(out), Some(text)) if len <= SHORT => *out = *text,
            _ => {
                self.out[self.written..self.written + len]
                    .copy_from_slice(&self.text[self.copied..end]);
            }
        }
        self.written += len;
        self.copied = end;
    }
}

/// Writes a character as UTF-8 to `out` at `at`; gives where it ends. Surrogates are none.
#[inline(always)]
fn put_character(out: &mut [u8], at: usize, code: u32) -> usize {
    // Chinese, and nearly all that comes escaped.
    if let 0x800..0x10000 = code
        && let Some(bytes) = out[at..].first_chunk_mut::<3>()
    {
        let low_6 = |bits: u32| 0x80 | (bits & 0x3f) as u8;
        *bytes = [0xe0 | (code >> 12) as u8, low_6(code >> 6), low_6(code)];
        return at + 3;
    }
    let character = char::from_u32(code).expect("the code is no surrogate");
    at + character.encode_utf8(&mut out[at..]).len()
}

#[inline]
fn skip_whitespace(text: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = text.get(at) {
        at += 1;
    }
    at
}

#[inline]
fn skip_digits(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_digit) {
        at += 1;
    }
    at
}

/// Where the next quote, backslash or control character stands at or after `at`; else the end.
#[inline]
fn skip_plain(text: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGHS: u64 = ONES << 7;
    // Bytes below `limit` lose their high bit's worth in a borrow, 8 bytes at a time. A borrow can
    // also reach the byte above, so only the lowest find counts. Bytes from 0x80 on never count.
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit));
    while let Some(chunk) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        // Flipping bit 1 puts the quote, 0x22, right above the control characters.
        let quotes_and_controls = below(word ^ (ONES * 0x02), 0x21);
        let backslashes = below(word ^ (ONES * u64::from(b'\\')), 0x01);
        let found = (quotes_and_controls | backslashes) & !word & HIGHS;
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
    let [b'\\', b'u', digits @ ..] = text.get(at..)?.first_chunk::<ESCAPE_LEN>()? else {
        return None;
    };
    let unit = digits.iter().fold(0, |unit, digit| (unit << 4) | HEX[usize::from(*digit)]);
    (unit < NOT_HEX).then_some(unit)
}

/// Which letters make an escape of two bytes. A table: the compiler makes a jump of a match.
const IS_SHORT_ESCAPE: [bool; 256] = {
    let mut table = [false; 256];
    let letters = b"\"\\/bfnrt";
    let mut at = 0;
    while at < letters.len() {
        table[letters[at] as usize] = true;
        at += 1;
    }
    table
};

/// The length of `\uXXXX`.
const ESCAPE_LEN: usize = 6;

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
