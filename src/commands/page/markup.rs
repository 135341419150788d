//! The page itself.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::commands::page::sections::Section;

const STYLE: &str = include_str!("style.css");

/// What stands above the results.
pub struct Head<'a> {
    pub title: &'a str,
    pub command: &'a str,
    pub now: &'a str,
    pub settings: &'a [(String, String)],
}

/// The whole page.
pub fn page(head: &Head<'_>, sections: &[Section]) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (head.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (head.title) }
                    p { (head.now) }
                }
                main {
                    @for section in sections { (one(section)) }
                    section {
                        h2 { "What was asked" }
                        pre { code { (head.command) } }
                        (figures(head.settings))
                    }
                }
                footer { "dify-sls-backfill " (env!("CARGO_PKG_VERSION")) }
            }
        }
    }
    .into_string()
}

fn figures(figures: &[(String, String)]) -> Markup {
    html! {
        ul.figures {
            @for (name, value) in figures {
                li { span { (name) } b { (value) } }
            }
        }
    }
}

fn one(section: &Section) -> Markup {
    html! {
        section {
            h2 { (section.title) }
            @if let Some((kind, text)) = &section.verdict {
                p class={ "verdict " (kind) } { (text) }
            }
            @if !section.figures.is_empty() {
                (figures(&section.figures))
            }
            @for chart in &section.charts { (chart.markup()) }
            @for table in &section.tables {
                h3 { (table.title) }
                div.scroll tabindex="0" {
                    table {
                        thead { tr { @for cell in &table.head { th scope="col" { (cell) } } } }
                        tbody {
                            @for row in &table.rows {
                                tr { @for cell in row { td { (cell) } } }
                            }
                        }
                    }
                }
                @if table.total > table.rows.len() as u64 {
                    p.more {
                        "The first " (table.rows.len()) " of "
                        (indicatif::HumanCount(table.total).to_string())
                        ": `--output json` lists more."
                    }
                }
            }
            @for note in &section.notes { p.note { (note) } }
        }
    }
}
