//! The transcoder by tables, against serde_json, and against Python's json.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::*;
use crate::dify::python::tests::run_python;

/// The text transcoded, and whether it is JSON.
fn transcode(text: &str) -> (String, bool) {
    // What is in the buffer before must stay.
    let mut out = b"before".to_vec();
    let is_json = Transcoder::default().transcode(text, &mut out);
    let out = String::from_utf8(out).unwrap();
    (out.strip_prefix("before").unwrap().to_owned(), is_json)
}

/// A text of JSON in any of its spellings, without lone surrogates and huge numbers, which
/// serde_json refuses to make a value of.
fn any_json() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("null".to_owned()),
        "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,20})?([eE][-+]?[0-9]{1,2})?",
        any_string(),
    ];
    let spaced = (any_whitespace(), scalar, any_whitespace())
        .prop_map(|(before, scalar, after)| before + &scalar + &after);
    spaced.prop_recursive(6, 60, 8, |inner| {
        let member = (any_whitespace(), any_string(), any_whitespace(), inner.clone())
            .prop_map(|(before, key, after, value)| format!("{before}{key}{after}:{value}"));
        let array = prop::collection::vec(inner, 0..8).prop_map(|values| values.join(","));
        let object = prop::collection::vec(member, 0..8).prop_map(|members| members.join(","));
        prop_oneof![
            (any_whitespace(), array).prop_map(|(space, values)| format!("{space}[{values}]")),
            (object, any_whitespace()).prop_map(|(members, space)| format!("{{{members}}}{space}")),
        ]
    })
}

fn any_whitespace() -> impl Strategy<Value = String> {
    "[ \t\n\r]{0,2}"
}

/// A JSON string whose characters are spelled at random: raw, `\uXXXX` in either case, `\n`.
fn any_string() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        any::<char>(),
        proptest::char::range('\0', '\u{80}'),
        proptest::char::range('\u{4e00}', '\u{4fff}'),
        proptest::char::range('\u{1f600}', '\u{1f64f}'),
        prop::sample::select(vec!['"', '\\', '/', '\n', '\u{7f}', '\u{d7ff}', '\u{e000}']),
    ];
    prop::collection::vec((character, 0..4_u8), 0..24).prop_map(|characters| {
        let spell = |(character, spelling)| spell(character, spelling);
        format!("\"{}\"", characters.into_iter().map(spell).collect::<String>())
    })
}

fn spell(character: char, spelling: u8) -> String {
    let units = |digits: fn(&u16) -> String| {
        character.encode_utf16(&mut [0; 2]).iter().map(digits).collect::<String>()
    };
    match (spelling, character) {
        (0, _) => units(|unit| format!("\\u{unit:04x}")),
        (1, _) => units(|unit| format!("\\u{unit:04X}")),
        (2, '/') => "\\/".to_owned(),
        (_, ' '..='\u{7e}') if character != '"' && character != '\\' => character.to_string(),
        (_, '\0'..='\u{7e}') => {
            let quoted = serde_json::to_string(&character).unwrap();
            quoted[1..quoted.len() - 1].to_owned()
        }
        _ => character.to_string(),
    }
}

/// Pieces that make JSON, nearly JSON and no JSON.
fn any_text() -> impl Strategy<Value = String> {
    const PIECES: &str = r#"{ } [ ] , : " "a" "a": \ \" \u \u00e9 \ud83d \ude00 \uD83D\uDE00 \n \x
        d8 0 1 - -0 1.5 . e E+ 1e5 true false null nul t \u0000 \u007e \u007F / \/ é 汉 😀 [] {} [1,2]
        {"a":"\u4e2d"} "#;
    let mut pieces: Vec<&str> = PIECES.split_whitespace().collect();
    pieces.extend([" ", "\n", "\t", "\r", "\u{b}", "\u{1}", "\u{a0}", "\u{7f}"]);
    prop_oneof![
        prop::collection::vec(prop::sample::select(pieces), 0..12)
            .prop_map(|pieces| pieces.concat()),
        any::<String>(),
        // JSON with one thing wrong, or not.
        (any_json(), any::<prop::sample::Index>(), any::<char>()).prop_map(|(json, at, other)| {
            let at = at.index(json.chars().count());
            json.chars().enumerate().map(|(n, c)| if n == at { other } else { c }).collect()
        }),
    ]
}

#[test]
fn escapes_become_utf8_where_python_would_not_escape() {
    for (text, wanted) in [
        (r#""\u4e2d\u6587""#, r#""中文""#),
        (r#""\u4E2D\u6587x\u00e9\u00E9y""#, r#""中文xééy""#),
        (r#""\ud83d\ude00\uD83D\uDE00""#, r#""😀😀""#),
        (r#""\ud800\udc00\udbff\udfff""#, "\"\u{10000}\u{10ffff}\""),
        (r#""\ud7ff\ue000\uffff\u2028\ufeff""#, "\"\u{d7ff}\u{e000}\u{ffff}\u{2028}\u{feff}\""),
        (r#""\u007e\u007f\u0080""#, "\"\\u007e\u{7f}\u{80}\""),
        (r#""\u0000\u001f\u0020\u0041\u0022\u005c""#, r#""\u0000\u001f\u0020\u0041\u0022\u005c""#),
        (r#""\b\f\n\r\t\"\\\/""#, r#""\b\f\n\r\t\"\\\/""#),
        (r#""\\u4e2d\\\u4e2d""#, r#""\\u4e2d\\中""#),
        (r#"{"\u952e": {"\u952e": ["\u503c", 1]}}"#, r#"{"键": {"键": ["值", 1]}}"#),
    ] {
        assert_eq!(transcode(text), (wanted.to_owned(), true), "{text}");
    }
}

#[test]
fn lone_surrogates_stay_as_they_are_spelled() {
    for (text, wanted) in [
        (r#""\ud83d""#, r#""\ud83d""#),
        (r#""\uDE00\uD83D""#, r#""\uDE00\uD83D""#),
        (r#""\ud83d\ud83d\ude00\ude00""#, r#""\ud83d😀\ude00""#),
        (r#""\ud83dx\ude00""#, r#""\ud83dx\ude00""#),
        (r#""\ud83d\u4e2d\ude00""#, r#""\ud83d中\ude00""#),
        (r#""\ud83d\\ude00""#, r#""\ud83d\\ude00""#),
        (r#""\ud83d\n\uDFFF""#, r#""\ud83d\n\uDFFF""#),
    ] {
        assert_eq!(transcode(text), (wanted.to_owned(), true), "{text}");
    }
}

#[test]
fn json_is_what_python_takes_for_it() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let mixed = r#"{"a":["#.repeat(150) + &"]}".repeat(150);
    for text in [
        "0",
        "-0",
        "-0.0e-0",
        "12345678901234567890123456789",
        "1E400",
        "1e-05",
        "NaN",
        "-Infinity",
        "[Infinity, -Infinity, NaN]",
        " \t\r\n{ } ",
        "[[], {}, [ ], { }]",
        r#"{"": "", "": ""}"#,
        "\"\u{7f}\u{a0}\u{feff}\"",
        &deep,
        &mixed,
    ] {
        assert_eq!(transcode(text), (text.to_owned(), true), "{text}");
    }
    for text in [
        "",
        " ",
        "nul",
        "nulll",
        "True",
        "None",
        "-NaN",
        "+1",
        "01",
        "-",
        "-x",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x10",
        "1 2",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[",
        "]",
        "[}",
        "{]",
        "{\"a\"]",
        "{\"a\" 1}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{1:2}",
        "{a:1}",
        "{'a': 1}",
        "[\"\\u4e2d\"",
        "\"\\u4e2d",
        "\"\\u4e2",
        "\"\\u4e2g\"",
        "\"\\u+123\"",
        "\"\\ud83d\\u12\"",
        "\"\\x41\"",
        "\"\\",
        "\"a\nb\"",
        "\"a\tb\"",
        "\"\0\"",
        "\u{feff}{}",
        "\u{a0}{}",
        "some words",
        &deep[1..],
        &mixed[..mixed.len() - 1],
    ] {
        assert_eq!(transcode(text), (text.to_owned(), false), "{text}");
    }
}

#[test]
fn the_next_special_byte_is_found_wherever_it_stands() {
    for len in 0..40 {
        for fill in ["a", "\u{7f}", "é", "!", "]", "#"] {
            let plain = &fill.repeat(len).into_bytes()[..len];
            assert_eq!(skip_plain(plain, 0), len);
            for at in 0..len {
                for special in [b'"', b'\\', 0, 0x1f] {
                    let mut text = plain.to_vec();
                    text[at] = special;
                    // Another one behind it must not be taken for the first.
                    text[len - 1] = special;
                    for start in 0..=at {
                        assert_eq!(skip_plain(&text, start), at, "{text:?} from {start}");
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn json_keeps_its_value(text in any_json()) {
        let (once, is_json) = transcode(&text);
        prop_assert!(is_json, "{}", text);
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        prop_assert_eq!(value(&once), value(&text));
        prop_assert!(once.len() <= text.len());
        prop_assert_eq!(transcode(&once), (once.clone(), true));
        // Nothing that UTF-8 can spell is left escaped.
        let (mut rest, mut escaped) = (once.as_str(), false);
        while let Some(at) = rest.find('\\') {
            let escape = &rest[at + 1..];
            if let Some(digits) = escape.strip_prefix('u') {
                escaped |= u32::from_str_radix(&digits[..4], 16).unwrap() >= 0x7f;
            }
            rest = &escape[1..];
        }
        prop_assert!(!escaped, "{}", once);
    }

    #[test]
    fn what_is_not_json_is_told_and_kept(text in any_text()) {
        // Ignoring a value, serde_json checks its grammar and nothing else.
        let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        let (once, told) = transcode(&text);
        prop_assert_eq!(told, is_json, "{:?}", text);
        if !is_json {
            prop_assert_eq!(once, text);
        } else {
            prop_assert_eq!(transcode(&once), (once.clone(), true));
        }
    }
}

#[test]
fn python_agrees_on_what_is_json_and_reads_the_same_value() {
    const SCRIPT: &str = r#"
import json, sys
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(0)
for line in sys.stdin:
    before, after, is_json = (bytes.fromhex(part).decode() for part in line.split(" "))
    try:
        value = repr(json.loads(before))
    except ValueError:
        value = None
    if (value is not None) != (is_json == "yes"):
        print("taken for JSON:", is_json, ascii(before))
    elif value is not None and repr(json.loads(after)) != value:
        print("another value:", ascii(before), ascii(after))
    elif value is None and after != before:
        print("not kept:", ascii(before), ascii(after))
"#;
    let with_python_words =
        (any_text(), any::<prop::sample::Index>(), 0..4_usize).prop_map(|(mut text, at, word)| {
            let at = at.index(text.len() + 1);
            let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.insert_str(at, ["NaN", "Infinity", "-Infinity", "\\ud800"][word]);
            text
        });
    let texts = prop_oneof![any_json(), any_text(), with_python_words];
    let mut runner = TestRunner::deterministic();
    let mut input = String::new();
    let mut counts = HashMap::new();
    for _ in 0..3000 {
        let text = texts.new_tree(&mut runner).unwrap().current();
        let (after, is_json) = transcode(&text);
        *counts.entry(is_json).or_insert(0) += 1;
        let parts = [text.as_str(), &after, if is_json { "yes" } else { "no" }];
        input += &parts.map(hex::encode).join(" ");
        input.push('\n');
    }
    assert!(counts[&true] > 500 && counts[&false] > 500, "{counts:?}");
    assert_eq!(run_python(SCRIPT, &input), "");
}

#[test]
fn what_python_writes_as_ascii_becomes_what_it_writes_as_utf8() {
    const SCRIPT: &str = r#"
import json, random, sys
random.seed(20260101)
ALPHABETS = [
    list(range(0, 0x80)),
    list(range(0x7e, 0x250)),
    list(range(0x4e00, 0x4f00)),
    [0xd7ff, 0xe000, 0xfffd, 0xffff, 0x10000, 0x1f600, 0x10ffff, 0x2028, 0xfeff],
    [0x22, 0x5c, 0x2f, 0x75, 0x0a],
]
NUMBERS = [0, -1, 2**70, 1.5, 1e-5, 1e16, 5e-324, float("nan"), float("inf"), float("-inf")]
def text():
    length = random.randrange(30)
    return "".join(chr(random.choice(random.choice(ALPHABETS))) for _ in range(length))
def value(depth):
    kind = random.randrange(6 if depth else 4)
    if kind < 2:
        return text()
    if kind == 2:
        return random.choice(NUMBERS)
    if kind == 3:
        return random.choice([True, False, None, "", [], {}])
    if kind == 4:
        return [value(depth - 1) for _ in range(random.randrange(6))]
    return {text(): value(depth - 1) for _ in range(random.randrange(6))}
for _ in range(3000):
    v = value(4)
    texts = [json.dumps(v), json.dumps(v, ensure_ascii=False)]
    print(*[("\n" + t).encode().hex() for t in texts])
"#;
    let pairs = run_python(SCRIPT, "");
    let decode = |hex: &str| String::from_utf8(hex::decode(hex).unwrap()).unwrap();
    let mut count = 0;
    for pair in pairs.lines() {
        let (ascii, utf8) = pair.split_once(' ').unwrap();
        assert_eq!(transcode(&decode(ascii)), (decode(utf8), true));
        count += 1;
    }
    assert_eq!(count, 3000);
}
