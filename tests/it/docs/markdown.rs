//! Takes a page of Markdown apart: texts, code in them, blocks of code, headings, tables, links.

/// A page, with the lines that its parts stand on, from 1.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Code between backticks, outside of blocks.
    pub(crate) spans: Vec<(usize, String)>,
    /// What is left of each line without code, blocks and links' targets.
    pub(crate) prose: Vec<(usize, String)>,
    /// Blocks of code: language, first line, text.
    pub(crate) blocks: Vec<(String, usize, String)>,
    /// Headings as they stand, without the signs before them.
    pub(crate) headings: Vec<(usize, String)>,
    /// Cells of the rows of tables, without the row of dashes.
    pub(crate) rows: Vec<(usize, Vec<String>)>,
    /// Targets of links.
    pub(crate) links: Vec<(usize, String)>,
}

impl Page {
    pub(crate) fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut block: Option<(String, usize, String)> = None;
        // A span may go on in the next line, so a paragraph is read as a whole.
        let (mut paragraph, mut begun) = (String::new(), 0);
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            let fence = line.trim_start().strip_prefix("```");
            if let Some(language) = fence {
                page.add_paragraph(begun, &std::mem::take(&mut paragraph));
                match block.take() {
                    Some(done) => page.blocks.push(done),
                    None => block = Some((language.to_owned(), number + 1, String::new())),
                }
                continue;
            }
            if let Some((_, _, text)) = &mut block {
                *text += line;
                *text += "\n";
                continue;
            }
            let is_own = line.starts_with(['#', '|']);
            if is_own || line.trim().is_empty() {
                page.add_paragraph(begun, &std::mem::take(&mut paragraph));
            }
            if let Some(heading) = line.strip_prefix('#') {
                let heading = heading.trim_start_matches('#').trim().to_owned();
                page.headings.push((number, heading));
            }
            if let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) {
                let cells: Vec<_> = cells.split('|').map(|cell| cell.trim().to_owned()).collect();
                if !cells[0].starts_with("---") {
                    page.rows.push((number, cells));
                }
            }
            if is_own {
                page.add_paragraph(number, line);
            } else {
                begun = if paragraph.is_empty() { number } else { begun };
                paragraph += line;
                paragraph += "\n";
            }
        }
        assert!(block.is_none(), "a block of code is never closed");
        page.add_paragraph(begun, &paragraph);
        page
    }

    fn add_paragraph(&mut self, begun: usize, text: &str) {
        let mut prose = String::new();
        for (index, part) in text.split('`').enumerate() {
            match index % 2 {
                0 => prose += part,
                _ => {
                    let line = begun + prose.matches('\n').count();
                    // A line break in a span is a space.
                    let span = part.split_whitespace().collect::<Vec<_>>().join(" ");
                    self.spans.push((line, span));
                    prose += &"\n".repeat(part.matches('\n').count());
                }
            }
        }
        let mut parts = prose.split("](");
        let mut rest = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (target, after) = part.split_once(')').expect("a link's target ends");
            let line = begun + rest.matches('\n').count();
            self.links.push((line, target.to_owned()));
            rest += after;
        }
        let lines = rest.lines().enumerate().map(|(index, line)| (begun + index, line.to_owned()));
        self.prose.extend(lines.filter(|(_, line)| !line.trim().is_empty()));
    }

    /// The names by which links reach the headings.
    pub(crate) fn anchors(&self) -> Vec<String> {
        self.headings.iter().map(|(_, heading)| anchor(heading)).collect()
    }
}

/// As GitHub makes them.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || ['-', '_'].contains(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_apart() {
        let page = Page::parse(
            "# One `two`\n\nA `b\nc` [d `e`](f.md#g) 7\n\n| `x` | 2 |\n|---|---|\n| y | z |\n\
             ```sh\nls `x`\n```\nend\n",
        );
        let spans: Vec<_> = page.spans.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(spans, [(1, "two"), (3, "b c"), (4, "e"), (6, "x")]);
        assert_eq!(page.links, [(4, "f.md#g".to_owned())]);
        assert_eq!(page.blocks, [("sh".to_owned(), 10, "ls `x`\n".to_owned())]);
        assert_eq!(page.headings, [(1, "One `two`".to_owned())]);
        assert_eq!(page.anchors(), ["one-two"]);
        assert_eq!(page.rows[1].1, ["y", "z"]);
        assert!(page.prose.iter().any(|(line, text)| *line == 4 && text.ends_with(" 7")));
        assert!(page.prose.iter().any(|(line, text)| *line == 12 && text == "end"));
    }
}
