//! The picture of a comparison: every row's ratio to the first one with its interval, the noise as a band behind, each
//! row's floor as a line across its lane.
//!
//! Drawn by hand as SVG, since it is a dozen lines and dots: the page's own styles colour it, so it is right on a light
//! and a dark ground, and nothing but position and words carries meaning.

use std::fmt::Write as _;

use crate::comparison::{Comparisons, Measure};
use crate::plot::row_colour;
use crate::statistics::{Ratio, Verdict};

const WIDTH: f64 = 560.0;
const ROW_HEIGHT: f64 = 34.0;
const NAMES_WIDTH: f64 = 170.0;
const WORDS_WIDTH: f64 = 70.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 26.0;
/// Ratios that are marked on the axis, where they fall into it.
const MARKS: [(f64, &str); 9] = [
    (0.125, "1/8"),
    (0.25, "1/4"),
    (0.5, "1/2"),
    (0.8, "0.8"),
    (1.0, "1"),
    (1.25, "1.25"),
    (2.0, "2"),
    (4.0, "4"),
    (8.0, "8"),
];

/// One measure of one section.
#[must_use]
pub fn chart(compared: &Comparisons, measure: Measure, title: &str) -> String {
    let ratios = compared.rows.iter().filter_map(|row| row.of(measure));
    // The axis reaches as far as the intervals do, the same to either side, and never less than a tenth.
    let reach = ratios.flat_map(|ratio| {
        let (low, high) = ratio.interval.unwrap_or((ratio.ratio, ratio.ratio));
        [low.ln().abs(), high.ln().abs()]
    });
    let floors = compared.rows.iter().filter_map(|row| row.floor_of(measure)).map(|floor| floor.ln().abs());
    let reach = reach.chain(floors).fold(0.1, f64::max).min(9f64.ln()) * 1.08;
    let place = |ratio: f64| {
        let share = (ratio.ln().clamp(-reach, reach) / reach + 1.0) / 2.0;
        NAMES_WIDTH + share * (WIDTH - NAMES_WIDTH - WORDS_WIDTH)
    };
    let height = TOP + ROW_HEIGHT * compared.rows.len() as f64 + BOTTOM;
    let below = height - BOTTOM;
    let mut svg = String::new();
    let (side, better) = match measure {
        Measure::Throughput => ("more is better", "right"),
        Measure::Cpu | Measure::Server => ("less is better", "left"),
    };
    let words = describe(compared, measure);
    let _ = write!(
        svg,
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}, against {}: {words}\">\
         <title>{title}, against {} ({side}, to the {better})</title>\
         <text x=\"0\" y=\"14\" class=\"strong\">{title}</text>\
         <text x=\"{WIDTH}\" y=\"14\" class=\"faint\" text-anchor=\"end\">{side}</text>",
        compared.base, compared.base
    );
    if let Some((low, high)) = compared.noise(measure).and_then(|noise| noise.interval) {
        let (from, to) = (place(low), place(high));
        let _ = write!(
            svg,
            "<rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            to - from,
            below - TOP
        );
    }
    for (ratio, name) in MARKS.iter().filter(|(ratio, _)| ratio.ln().abs() <= reach) {
        let (x, class) = (place(*ratio), if *ratio == 1.0 { "base" } else { "grid" });
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{below}\"/>\
             <text class=\"faint\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            below + 16.0
        );
    }
    for (index, row) in compared.rows.iter().enumerate() {
        let y = TOP + ROW_HEIGHT * (index as f64 + 0.5);
        let name = if row.again { format!("{} again", row.row) } else { row.row.clone() };
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\"{}>{name}</text>",
            NAMES_WIDTH - 14.0,
            y + 4.0,
            if row.again { " class=\"faint\"" } else { "" }
        );
        if let Some(floor) = row.floor_of(measure) {
            let x = place(floor);
            let _ = write!(
                svg,
                "<line class=\"floor\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                y - ROW_HEIGHT / 2.0 + 3.0,
                y + ROW_HEIGHT / 2.0 - 3.0
            );
        }
        let Some(ratio) = row.of(measure) else { continue };
        let colour = if row.again { "var(--soft)".to_owned() } else { row_colour(index + 1) };
        if let Some((low, high)) = ratio.interval {
            let _ = write!(
                svg,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"3\" \
                 stroke-linecap=\"round\"/>",
                place(low),
                place(high)
            );
        }
        let told = matches!(compared.verdict(row, measure), Some(Verdict::More | Verdict::Less));
        // A difference is a full dot, anything else a hollow one.
        let fill = if told { colour.as_str() } else { "var(--ground)" };
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"6\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\" class=\"{}\">{}</text>",
            place(ratio.ratio),
            y + 4.0,
            if told { "strong" } else { "faint" },
            times(ratio)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn times(ratio: &Ratio) -> String {
    format!("{:.2} x", ratio.ratio)
}

/// The chart for who does not see it.
fn describe(compared: &Comparisons, measure: Measure) -> String {
    let row = |row: &crate::comparison::Comparison| {
        let words = crate::comparison::in_words(row.of(measure), compared.verdict(row, measure));
        let floor =
            row.floor_of(measure).map_or_else(String::new, |floor| format!(", its floor {floor:.2} x"));
        format!("{}{} {words}{floor}", row.row, if row.again { " again" } else { "" })
    };
    compared.rows.iter().map(row).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned_of;
    use crate::spec::Load;

    #[test]
    fn a_chart_shows_every_row_and_says_it_in_words() {
        let record = canned_of("--seed 42 --blocks 8 --seconds 1");
        let compared = Comparisons::of(&record, Load::Tail, 256 << 10).unwrap();
        for (measure, side) in [(Measure::Throughput, "more is better"), (Measure::Cpu, "less is better")] {
            let svg = chart(&compared, measure, "MB/s");
            assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && svg.contains(side));
            assert_eq!(svg.matches("<circle").count(), compared.rows.len());
            assert!(svg.contains("copy+tail") && svg.contains("buffered+copy again"), "{svg}");
            assert!(
                svg.contains("role=\"img\"") && svg.contains("aria-label=\"MB/s, against buffered+copy: ")
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{svg}");
        }
    }
}
