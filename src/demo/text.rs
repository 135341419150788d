//! Text as models, users and programs write it, ready to stand inside a JSON string.
//!
//! Making up text word by word is slow; a pool of some thousand pieces is made once, and a text is
//! pieces of it in random order. All of it is escaped as Python's `json.dumps` does by default:
//! ASCII only, `\uXXXX` and surrogate pairs for the rest, since that is what Dify has in its tables.

use std::sync::LazyLock;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What kind of text a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    /// English or Chinese sentences.
    Prose,
    Code,
    Markdown,
}

/// Pieces of text, each escaped, each safe to cut before any of its spaces.
pub(crate) struct TextPool {
    english: Vec<String>,
    chinese: Vec<String>,
    code: Vec<String>,
    markdown: Vec<String>,
}

const PIECES: usize = 2048;

impl TextPool {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut pieces = |make: fn(&mut StdRng) -> String| {
            (0..PIECES).map(|_| escape_json(&make(&mut rng))).collect()
        };
        Self {
            english: pieces(english),
            chinese: pieces(chinese),
            code: pieces(code),
            markdown: pieces(markdown),
        }
    }

    /// Adds about `bytes` of text to `out`, never more; nothing where no piece fits.
    pub(crate) fn write(&self, out: &mut String, bytes: usize, flavor: Flavor, rng: &mut StdRng) {
        let pool = match flavor {
            Flavor::Prose if rng.random_ratio(2, 5) => &self.chinese,
            Flavor::Prose => &self.english,
            Flavor::Code => &self.code,
            Flavor::Markdown => &self.markdown,
        };
        let end = out.len() + bytes;
        while out.len() < end {
            let piece = &pool[rng.random_range(0..pool.len())];
            let room = end - out.len();
            if piece.len() > room {
                // No escape sequence has a space inside.
                let cut = piece[..room].rfind(' ').unwrap_or(0);
                out.push_str(&piece[..cut]);
                return;
            }
            out.push_str(piece);
        }
    }
}

/// Escapes a text as Python's `json.dumps(text)` does, without the quotes around it.
pub(crate) fn escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out
}

pub(crate) fn pick<'a, T: ?Sized>(choices: &[&'a T], rng: &mut StdRng) -> &'a T {
    choices[rng.random_range(0..choices.len())]
}

fn english(rng: &mut StdRng) -> String {
    let words: Vec<&str> = (0..rng.random_range(6..19)).map(|_| pick(&WORDS, rng)).collect();
    let mut sentence = words.join(" ");
    sentence[..1].make_ascii_uppercase();
    if rng.random_ratio(1, 4) {
        sentence += &format!(" ({:.2} %)", f64::from(rng.random_range(0..10_000)) / 100.0);
    }
    sentence + pick(&[". ", ". ", ". ", "? ", "! ", ":\n", ".\n\n", " \u{2014} ", "\u{2026} "], rng)
}

fn chinese(rng: &mut StdRng) -> String {
    let phrases: Vec<&str> = (0..rng.random_range(2..6)).map(|_| pick(&PHRASES, rng)).collect();
    let mut sentence = phrases.join("，");
    if rng.random_ratio(1, 6) {
        sentence += &format!(" {} ", rng.random_range(1..100_000));
        sentence += pick(&["元", "件", "次", "天", "kg", "KB", "%"], rng);
    }
    sentence += pick(&["。", "。", "。", "！", "？", "；\n"], rng);
    if rng.random_ratio(1, 5) {
        sentence += pick(&["😀", "👍🏽", "🚀", "❤️", "👨‍👩‍👧", "✅", "🇨🇳", "𠮷"], rng);
    }
    sentence + " "
}

fn code(rng: &mut StdRng) -> String {
    let indent = "    ".repeat(rng.random_range(0..4));
    let line = pick(LINES_OF_CODE, rng).replace('@', pick(&WORDS, rng));
    format!("{indent}{}\n", line.replace('#', &rng.random_range(0..4096).to_string()))
}

fn markdown(rng: &mut StdRng) -> String {
    let text = match rng.random_range(0..3) {
        0 => chinese(rng),
        _ => english(rng),
    };
    match rng.random_range(0..9) {
        0 => format!("## {}\n\n", text.trim_end()),
        1 => format!("- **{}**: {text}\n", pick(&WORDS, rng)),
        2 => format!("1. {text}\n"),
        3 => format!("> {text}\n\n"),
        4 => format!("```python\n{}{}```\n\n", code(rng), code(rng)),
        5 => format!("| {} | {} |\n|---|---|\n", pick(&WORDS, rng), rng.random_range(0..999)),
        6 => format!("[{}](https://example.com/{}) ", pick(&WORDS, rng), pick(&WORDS, rng)),
        _ => text,
    }
}

static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    "account after agent amount answer article available balance because before between \
     branch budget category change channel check city claim client compare confirm contact \
     content contract could country course customer data delivery department describe design \
     device document during email employee engine error every example expected factory \
     feature field finance following for from given history however image important include \
     index industry information input insurance interest invoice item keyword knowledge \
     language latency legal level limit manager market material measure meeting member \
     message method model month network number of office online option order output partner \
     payment people period please policy price process product project question rate reason \
     record refund region report request result return review sales schedule section service \
     should source status summary supplier support system the ticket time to total update \
     usage user value vendor version warranty which with workflow"
        .split(' ')
        .collect()
});

static PHRASES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    "您好 根据您提供的信息 请参考以下内容 我们建议 订单已经发货 如果您有其他问题 \
     退款将在三个工作日内到账 请提供您的订单号 该产品支持七天无理由退货 以上数据仅供参考 \
     系统检测到异常 本季度销售额同比增长 知识库中没有找到相关内容 总结如下 首先 其次 最后 \
     需要注意的是 客户反馈 会议纪要 合同条款 市场分析报告 用户画像 人工智能正在改变行业 \
     请确认以下信息是否正确 感谢您的耐心等待 为您转接人工客服 这是一个常见问题 具体步骤如下 \
     点击右上角的设置按钮 选择需要导出的时间范围 上传文件不能超过十五兆 该接口返回的状态码 \
     数据库连接超时 模型输出的结果 请用简洁的语言回答 不要编造答案 翻译成英文 保持原文格式 \
     提取关键信息 深圳市南山区 北京市海淀区中关村 上海浦东新区 发票抬头 统一社会信用代码 \
     质量检测合格 库存不足 物流信息更新 预计明天送达 好的"
        .split(' ')
        .collect()
});

const LINES_OF_CODE: &[&str] = &[
    "def main(@: dict, limit: int = #) -> dict:",
    "for item in @[\"items\"][:#]:",
    "if item.get(\"@\") is None or item[\"@\"] == \"\":",
    "return {\"result\": json.dumps(@, ensure_ascii=False), \"count\": #}",
    "except (ValueError, KeyError) as error:  # @",
    "@ = re.sub(r\"\\s+\", \" \", @).strip()",
    "const @ = await fetch(`https://api.example.com/v1/@?page=#`);",
    "SELECT id, @ FROM orders WHERE @ > '#' ORDER BY created_at DESC LIMIT #;",
    "<div class=\"@\"><a href='/@/#'>@ &amp; more</a></div>",
    "2026-03-01 08:12:33,#  WARN [@] C:\\Program Files\\@\\run.exe exited with #",
    "{\"@\": #, \"tags\": [\"@\", null, true], \"价格\": 1e-05}",
    "\u{1b}[31mError\u{1b}[0m: @ at 0x#\u{7f}\u{0}",
    "print(f\"@ = {@!r:>#}\")\t# 打印结果",
    "Authorization: Bearer ****\r\nX-@: #\r\n",
    "}",
    "",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_those_of_json_dumps() {
        let text = "a\"\\/\n\r\t\u{8}\u{c}\u{0}\u{1b}\u{7f}é字😀~";
        let python = r#"a\"\\/\n\r\t\b\f\u0000\u001b\u007f\u00e9\u5b57\ud83d\ude00~"#;
        assert_eq!(escape_json(text), python);
        assert_eq!(serde_json::from_str::<String>(&format!("\"{python}\"")).unwrap(), text);
    }

    #[test]
    fn text_is_cut_between_escapes() {
        let pool = TextPool::new(1);
        let mut rng = StdRng::seed_from_u64(2);
        for flavor in [Flavor::Prose, Flavor::Code, Flavor::Markdown] {
            for bytes in 0..600 {
                let mut text = String::from("\"");
                pool.write(&mut text, bytes, flavor, &mut rng);
                assert!(text.is_ascii() && text.len() <= bytes + 1, "{text}");
                text.push('"');
                let read: String = serde_json::from_str(&text).unwrap();
                assert_eq!(escape_json(&read), text[1..text.len() - 1]);
            }
        }
    }

    #[test]
    fn long_texts_have_the_length_asked_for() {
        let pool = TextPool::new(1);
        let mut text = String::new();
        pool.write(&mut text, 100_000, Flavor::Markdown, &mut StdRng::seed_from_u64(3));
        assert!((99_000..=100_000).contains(&text.len()), "{}", text.len());
    }
}
