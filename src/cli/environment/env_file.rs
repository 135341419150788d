//! Reads an env file as Docker Compose reads it, so that Dify's own `.env` serves as it is.
//!
//! `KEY=value` or `KEY: value`, with or without `export`; lines that begin with `#`, and what
//! follows a `#` behind a space, are comments. In single quotes everything is taken as it stands;
//! in double quotes `\n`, `\r`, `\t`, `\"`, `\\` and `\$` mean what they mean in a shell. Outside
//! of single quotes `$NAME`, `${NAME}`, `${NAME:-default}` and `${NAME-default}` are replaced, and
//! `$$` is a `$`. Quoted values may span lines. A key alone on its line takes its value from the
//! environment. Compose's other forms (`:?`, `:+`) are refused by name. (compose-go, `dotenv`;
//! docs.docker.com, "Syntax for environment files with Docker Compose".)

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EnvFile {
    /// In the order of the file; the last of a name counts.
    pub variables: Vec<(String, String)>,
    /// Names that are replaced by nothing, since nobody sets them, with the key they stand in.
    pub unset: Vec<(String, String)>,
}

/// A line that cannot be understood. Its text is not shown: it may hold a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct NotAnEnvFile {
    pub line: usize,
    pub what: &'static str,
}

/// Understands `text`. `outside` knows the variables that are set before this file: they win over
/// the file's own where one is replaced.
pub fn parse(
    text: &str,
    outside: &dyn Fn(&str) -> Option<String>,
) -> Result<EnvFile, NotAnEnvFile> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { rest: text, line: 1, outside, file: EnvFile::default() };
    while reader.statement()? {}
    Ok(reader.file)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    outside: &'a dyn Fn(&str) -> Option<String>,
    file: EnvFile,
}

impl<'a> Reader<'a> {
    fn error(&self, what: &'static str) -> NotAnEnvFile {
        NotAnEnvFile { line: self.line, what }
    }

    /// Takes the next `bytes` of the text.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        self.take(self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len()))
    }

    /// Reads one variable or comment; `false` at the end of the file.
    fn statement(&mut self) -> Result<bool, NotAnEnvFile> {
        self.take_while(char::is_whitespace);
        if self.rest.is_empty() {
            return Ok(false);
        }
        if self.rest.starts_with('#') {
            self.take_while(|c| c != '\n');
            return Ok(true);
        }
        if let Some(after) = self.rest.strip_prefix("export")
            && after.starts_with(is_blank)
        {
            self.take("export".len());
            self.take_while(is_blank);
        }
        let key = self.take_while(|c| c.is_alphanumeric() || "_.-[]".contains(c)).to_owned();
        if key.is_empty() {
            return Err(self.error("it begins with no name of a variable"));
        }
        self.take_while(is_blank);
        match self.rest.chars().next() {
            Some('=' | ':') => {
                self.take(1);
                self.take_while(is_blank);
                let value = self.value(&key)?;
                self.file.variables.push((key, value));
            }
            None | Some('\n') => {
                if let Some(value) = (self.outside)(&key) {
                    self.file.variables.push((key, value));
                }
            }
            Some(_) => return Err(self.error("no = follows the name of the variable")),
        }
        Ok(true)
    }

    fn value(&mut self, key: &str) -> Result<String, NotAnEnvFile> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let Some(quote) = quote else {
            let line = self.take_while(|c| c != '\n');
            let comment =
                line.match_indices('#').find(|(at, _)| *at == 0 || line[..*at].ends_with(is_blank));
            let value = comment.map_or(line, |(at, _)| &line[..at]);
            return self.replaced(value.trim_end(), key, false);
        };
        self.take(1);
        let mut end = None;
        let mut is_escaped = false;
        for (at, c) in self.rest.char_indices() {
            if c == quote && !is_escaped {
                end = Some(at);
                break;
            }
            is_escaped = c == '\\' && !is_escaped;
        }
        let Some(end) = end else { return Err(self.error("a quotation mark is never closed")) };
        let raw = self.take(end);
        self.take(1);
        let value = match quote {
            '\'' => raw.replace("\\'", "'"),
            _ => self.replaced(raw, key, true)?,
        };
        self.take_while(is_blank);
        if !self.rest.is_empty() && !self.rest.starts_with(['#', '\n']) {
            return Err(self.error("something follows the closing quotation mark"));
        }
        Ok(value)
    }

    /// The text with its variables, and where `has_escapes` its backslashes, replaced.
    fn replaced(
        &mut self,
        text: &str,
        key: &str,
        has_escapes: bool,
    ) -> Result<String, NotAnEnvFile> {
        let mut value = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find(['$', '\\']) {
            value += &rest[..at];
            rest = &rest[at..];
            let next = rest[1..].chars().next();
            let plain = match (rest.as_bytes()[0], next) {
                (b'\\', Some(escaped)) if has_escapes => match escaped {
                    'n' => Some("\n"),
                    'r' => Some("\r"),
                    't' => Some("\t"),
                    '"' => Some("\""),
                    '\\' => Some("\\"),
                    '$' => Some("$"),
                    _ => None,
                },
                (b'$', Some('$')) => Some("$"),
                _ => None,
            };
            if let Some(plain) = plain {
                value += plain;
                rest = &rest[2..];
                continue;
            }
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            match (rest.as_bytes()[0], next) {
                (b'$', Some('{')) => {
                    let end = closing_brace(rest)
                        .ok_or_else(|| self.error("a ${ is never closed by a }"))?;
                    value += &self.braced(&rest[2..end], key)?;
                    rest = &rest[end + 1..];
                }
                (b'$', Some(c)) if is_name(c) && !c.is_ascii_digit() => {
                    let name = &rest[1..];
                    let name = &name[..name.find(|c| !is_name(c)).unwrap_or(name.len())];
                    value += &self.variable(name, key);
                    rest = &rest[1 + name.len()..];
                }
                _ => {
                    value += &rest[..1];
                    rest = &rest[1..];
                }
            }
        }
        Ok(value + rest)
    }

    /// What stands for `inner`, the text between `${` and `}`.
    fn braced(&mut self, inner: &str, key: &str) -> Result<String, NotAnEnvFile> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, operator) = inner.split_at(inner.find(|c| !is_name(c)).unwrap_or(inner.len()));
        if name.is_empty() {
            return Err(self.error("a ${ is followed by no name"));
        }
        let found = self.known(name);
        match operator {
            "" => Ok(self.variable(name, key)),
            _ if operator.starts_with(":-") => match found.filter(|value| !value.is_empty()) {
                Some(value) => Ok(value),
                None => self.replaced(&operator[2..], key, false),
            },
            _ if operator.starts_with('-') => match found {
                Some(value) => Ok(value),
                None => self.replaced(&operator[1..], key, false),
            },
            _ => Err(self.error("of ${NAME…} only ${NAME}, ${NAME:-…} and ${NAME-…} are known")),
        }
    }

    fn variable(&mut self, name: &str, key: &str) -> String {
        self.known(name).unwrap_or_else(|| {
            self.file.unset.push((key.to_owned(), name.to_owned()));
            String::new()
        })
    }

    fn known(&self, name: &str) -> Option<String> {
        let earlier = || self.file.variables.iter().rev().find(|(key, _)| key == name);
        (self.outside)(name).or_else(|| earlier().map(|(_, value)| value.clone()))
    }
}

/// Where the `}` is that closes the `${` at the beginning of `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// A space that is no end of a line. A carriage return at the end of a line counts.
fn is_blank(c: char) -> bool {
    c.is_whitespace() && c != '\n'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_all(text: &str) -> Result<EnvFile, NotAnEnvFile> {
        parse(text, &|name| (name == "OUT").then(|| "side".to_owned()))
    }

    fn value(line: &str) -> String {
        let file = parse_all(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(file.variables.len(), 1, "{line}");
        file.variables[0].1.clone()
    }

    #[test]
    fn values_are_read_as_compose_reads_them() {
        for (line, wanted) in [
            ("A=b", "b"),
            ("A = b ", "b"),
            ("A: b", "b"),
            ("export A=b", "b"),
            ("  export  A=b", "b"),
            ("A=", ""),
            ("A=\r\n", ""),
            ("A=b # comment", "b"),
            ("A=b#c", "b#c"),
            ("A=# comment", ""),
            ("A=b c d", "b c d"),
            ("A=b=c", "b=c"),
            ("A=p@:/%w", "p@:/%w"),
            ("A=b\\n", "b\\n"),
            ("A=\"b # c\"", "b # c"),
            ("A=\"b\" # c", "b"),
            ("A='b' # c", "b"),
            ("A=\"b\\\"c\\\\d\\ne\\x\"", "b\"c\\d\ne\\x"),
            ("A='b\\nc $OUT \"d\"'", "b\\nc $OUT \"d\""),
            ("A='it\\'s'", "it's"),
            ("A=\"\"", ""),
            ("A=b\"c\"", "b\"c\""),
            ("A=\"two\nlines\"", "two\nlines"),
            ("\u{feff}A=b", "b"),
            ("A=$OUT", "side"),
            ("A=x${OUT}y", "xsidey"),
            ("A=\"$OUT\"", "side"),
            ("A=${NONE:-d}", "d"),
            ("A=${NONE-d}", "d"),
            ("A=${OUT:-d}", "side"),
            ("A=${NONE:-${OUT}x}", "sidex"),
            ("A=${NONE:-}", ""),
            ("A=a$$b", "a$b"),
            ("A=\"a\\$b\"", "a$b"),
            ("A=cost 5$", "cost 5$"),
            ("A=$1x", "$1x"),
            ("OUT", "side"),
        ] {
            assert_eq!(value(line), wanted, "{line:?}");
        }
    }

    #[test]
    fn a_file_is_read_line_by_line_and_earlier_variables_are_known() {
        let text = "# Dify\n\nA=1\nB=\"${A}2\"\n  # more\nA=3\nNONE\nC=${A:-9}$NONE\n";
        let file = parse_all(text).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            file.variables,
            [pair("A", "1"), pair("B", "12"), pair("A", "3"), pair("C", "3")]
        );
        assert_eq!(file.unset, [pair("C", "NONE")]);
    }

    #[test]
    fn what_cannot_be_understood_is_told_by_its_line_without_its_text() {
        for (text, line, what) in [
            ("A=1\n=hush", 2, "it begins with no name of a variable"),
            ("A=1\nB hush", 2, "no = follows the name of the variable"),
            ("A=1\n\nB=\"hush", 3, "a quotation mark is never closed"),
            ("A=\"x\ny\" hush", 2, "something follows the closing quotation mark"),
            ("A=${hush", 1, "a ${ is never closed by a }"),
            ("A=${}", 1, "a ${ is followed by no name"),
            ("A=${B:?hush}", 1, "of ${NAME…} only ${NAME}, ${NAME:-…} and ${NAME-…} are known"),
        ] {
            assert_eq!(parse_all(text), Err(NotAnEnvFile { line, what }), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn single_quotes_keep_every_text(text in "[^'\\\\\r]*") {
            prop_assert_eq!(value(&format!("A='{text}'")), text);
        }

        #[test]
        fn no_text_panics(text in any::<String>(), tail in "[$\\\\{}\"'#=:A-]{0,12}") {
            let _ = parse_all(&text);
            let _ = parse_all(&format!("A={tail}"));
            let _ = parse_all(&format!("A=\"{tail}\""));
        }
    }
}
