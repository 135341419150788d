//! Cuts Rust source into words and signs, without comments, texts and tests.

/// An identifier, `::`, or any other sign alone, with the line it stands on, from 1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// The tokens of a source text. Comments, strings, characters and lifetimes are left out.
pub(crate) fn of(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let skipped = comment(rest).or_else(|| literal(rest));
        if let Some(length) = skipped {
            line += rest[..length].matches('\n').count();
            rest = &rest[length..];
            continue;
        }
        let is_word = |c: char| c == '_' || c.is_alphanumeric();
        let length = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            tokens.push(Token { text: rest[..length].to_owned(), line });
        }
        line += usize::from(first == '\n');
        rest = &rest[length..];
    }
    tokens
}

/// The length of the comment that `text` begins with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    Some(at)
}

/// The length of the string, character or lifetime that `text` begins with, prefix included.
fn literal(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| {
        let rest = text.strip_prefix(prefix);
        rest.is_some_and(|rest| {
            let raw = prefix.ends_with('r');
            rest.starts_with('"') || raw && rest.trim_start_matches('#').starts_with('"')
        })
    });
    if let Some(prefix) = prefix {
        let rest = &text[prefix.len()..];
        if prefix.ends_with('r') {
            let hashes = rest.len() - rest.trim_start_matches('#').len();
            let end = format!("\"{}", "#".repeat(hashes));
            let body = &rest[hashes + 1..];
            let length = body.find(&end).map_or(body.len(), |at| at + end.len());
            return Some(prefix.len() + hashes + 1 + length);
        }
        return Some(prefix.len() + quoted(rest, '"'));
    }
    let rest = text.strip_prefix('\'').or_else(|| text.strip_prefix("b'"))?;
    let quote = text.len() - rest.len() - 1;
    let mut characters = rest.chars();
    let is_character = characters.next() == Some('\\') || characters.next() == Some('\'');
    match is_character {
        true => Some(quote + quoted(&text[quote..], '\'')),
        // A lifetime: its name goes too.
        false => Some(1 + rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(0)),
    }
}

/// The length of a text between two `quote`s, the first of which it begins with.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Leaves out every item under a `#[cfg(…test…)]` that is not a `not(…)`.
pub(crate) fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match attribute_end(&tokens[at..]) {
            Some(end) if is_for_tests(&tokens[at..at + end]) => {
                at += end;
                while let Some(end) = attribute_end(&tokens[at..]) {
                    at += end;
                }
                at += item_end(&tokens[at..]);
            }
            Some(end) => {
                kept.extend_from_slice(&tokens[at..at + end]);
                at += end;
            }
            None => {
                kept.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    kept
}

/// How many tokens the attribute has that these begin with.
fn attribute_end(tokens: &[Token]) -> Option<usize> {
    let begins = tokens.len() > 1 && tokens[0].text == "#" && tokens[1].text == "[";
    begins.then(|| 1 + block_end(&tokens[1..]))
}

fn is_for_tests(attribute: &[Token]) -> bool {
    let has = |word: &str| attribute.iter().any(|token| token.text == word);
    attribute.get(2).is_some_and(|token| token.text == "cfg") && has("test") && !has("not")
}

/// How many tokens an item has: up to its `;`, or to the end of its block.
fn item_end(tokens: &[Token]) -> usize {
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "{" => return at + block_end(&tokens[at..]),
            "(" | "[" => at += block_end(&tokens[at..]),
            _ => at += 1,
        }
    }
    at
}

/// How many tokens lie between a bracket and its counterpart, both included.
fn block_end(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let tokens = without_tests(of(text));
        let words: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert_eq!(words.join(" "), expected, "{text}");
    }

    #[test]
    fn comments_and_texts_are_left_out() {
        check("a // b\nc", "a c");
        check("a /* b /* c */ d */ e", "a e");
        check(r#"a "b \" c" d"#, "a d");
        check(r##"a r#"b " c"# br"d" b"e" c"f" g"##, "a g");
        check(r"a 'b' '\'' '\u{1f}' b'c' '字' d", "a d");
        check("fn f<'a>(x: &'a str) -> &'static T", "fn f < > ( x : & str ) - > & T");
        check("r#type bar b crate::x", "r # type bar b crate :: x");
    }

    #[test]
    fn lines_are_counted_through_texts() {
        let tokens = of("a\n/*\n*/ \"\n\" b");
        assert_eq!(tokens.iter().map(|token| token.line).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn test_items_are_left_out() {
        check("#[cfg(test)] mod tests { fn f() { {} } } a", "a");
        check("#[cfg(test)] use x::{y}; a", "; a");
        check("#[cfg(all(test, unix))] #[x] fn f(x: [u8; 2]) {} a", "a");
        check("#[cfg(test)] const A: [u8; 1] = [1]; a", "a");
        check("#[cfg(not(test))] a; #[test] b", "# [ cfg ( not ( test ) ) ] a ; # [ test ] b");
    }
}
