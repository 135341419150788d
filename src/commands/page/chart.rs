//! A chart of days: two bars for each, in SVG that takes its colours from the page.

use maud::{Markup, html};

/// More bars cannot be told apart: days in a row are put together.
const BARS_MAX: usize = 120;

/// A chart's own units; the page stretches it.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 160.0;

/// What a chart shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chart {
    pub title: String,
    /// What the two bars of a place are; an empty second one is left out.
    pub legend: [String; 2],
    pub bars: Vec<Bar>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bar {
    pub place: String,
    pub values: [f64; 2],
}

impl Chart {
    /// The same with so few bars that they can be told apart.
    fn coarse(&self) -> Vec<Bar> {
        let width = self.bars.len().div_ceil(BARS_MAX).max(1);
        let sum = |bars: &[Bar]| Bar {
            place: match bars {
                [one] => one.place.clone(),
                [first, .., last] => format!("{} to {}", first.place, last.place),
                [] => String::new(),
            },
            values: [0, 1].map(|side| bars.iter().map(|bar| bar.values[side]).sum()),
        };
        self.bars.chunks(width).map(sum).collect()
    }

    pub fn markup(&self) -> Markup {
        let bars = self.coarse();
        let most = bars.iter().flat_map(|bar| bar.values).fold(0.0, f64::max);
        let sides = if self.legend[1].is_empty() { 1 } else { 2 };
        let step = WIDTH / bars.len().max(1) as f64;
        let thick = step * 0.8 / sides as f64;
        html! {
            figure {
                figcaption { (self.title)
                    span.legend {
                        @for side in 0..sides {
                            span class={ "key k" (side) } { (self.legend[side]) }
                        }
                    }
                }
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none"
                    role="img" aria-label=(self.title) {
                    @for (nth, bar) in bars.iter().enumerate() {
                        g {
                            title { (tip(bar, &self.legend)) }
                            @for side in 0..sides {
                                @let tall = bar.values[side] / most.max(1.0) * (HEIGHT - 4.0);
                                rect class={ "k" (side) }
                                    x=(round(step * (nth as f64 + 0.1) + thick * side as f64))
                                    y=(round(HEIGHT - tall)) width=(round(thick))
                                    height=(round(tall)) {}
                            }
                        }
                    }
                    line x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) {}
                }
                div.axis {
                    span { (bars.first().map_or("", |bar| bar.place.as_str())) }
                    span { "highest: " (number(most)) }
                    span { (bars.last().map_or("", |bar| bar.place.as_str())) }
                }
            }
        }
    }
}

fn tip(bar: &Bar, legend: &[String; 2]) -> String {
    let mut text = format!("{}: {} {}", bar.place, number(bar.values[0]), legend[0]);
    if !legend[1].is_empty() {
        text += &format!(", {} {}", number(bar.values[1]), legend[1]);
    }
    text
}

fn number(number: f64) -> String {
    indicatif::HumanCount(number.round().max(0.0) as u64).to_string()
}

/// Two digits are finer than a screen.
fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_years_are_few_bars_and_nothing_is_lost() {
        let bars = (0..3650)
            .map(|nth| Bar { place: format!("day {nth}"), values: [f64::from(nth), 1.0] })
            .collect();
        let chart = Chart { bars, ..Chart::default() };
        let coarse = chart.coarse();
        assert!(coarse.len() <= BARS_MAX, "{}", coarse.len());
        assert_eq!(coarse.iter().map(|bar| bar.values[1]).sum::<f64>(), 3650.0);
        assert_eq!(coarse[0].place, "day 0 to day 30");
    }
}
