//! The latency-by-percentile plot, as SVG that stands alone in the page.
//!
//! The horizontal axis is the number of nines: each step right leaves a tenth of the requests. A curve ends where
//! its requests do, for a quantile with nothing beyond it is only the maximum again. Ink and grid get marker colours
//! that the page's style sheet replaces, so one drawing serves light and dark.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::recorder::Latencies;
use crate::units::nanoseconds;

/// The marker for text and axes.
pub const INK: RGBColor = RGBColor(1, 2, 3);
/// The marker for grid lines.
pub const GRID: RGBColor = RGBColor(4, 5, 6);
/// One colour a row, readable on white and on black, apart for most colour-blind readers (after Okabe and Ito).
const ROW_COLOURS: [RGBColor; 6] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 133, 202),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(180, 140, 0),
    RGBColor(128, 128, 128),
];
const SIZE: (u32, u32) = (760, 380);
/// Points of a curve for each nine.
const POINTS_PER_NINE: u32 = 24;

/// The colour of the n-th row, as the page writes it.
#[must_use]
pub fn row_colour(index: usize) -> String {
    let RGBColor(red, green, blue) = ROW_COLOURS[index % ROW_COLOURS.len()];
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// Curves of response time by percentile, one a row; nothing when no row has a request.
///
/// # Errors
/// When the drawing library refuses.
pub fn latency_by_percentile(rows: &[(String, Latencies)]) -> Result<Option<String>> {
    let most = rows.iter().map(|(_, latencies)| latencies.count()).max().unwrap_or(0);
    if most == 0 {
        return Ok(None);
    }
    let nines_max = (most as f64).log10().max(1.0);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        draw(&area, rows, nines_max).map_err(|error| anyhow!("drawing latencies: {error}"))?;
    }
    Ok(Some(svg))
}

type DrawingError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(
    area: &DrawingArea<SVGBackend<'a>, Shift>,
    rows: &[(String, Latencies)],
    nines_max: f64,
) -> Result<(), DrawingError<'a>> {
    let measured = || rows.iter().enumerate().filter(|(_, (_, latencies))| latencies.count() > 0);
    let lowest = measured().map(|(_, (_, latencies))| latencies.at(0.0).max(1)).min().unwrap_or(1) as f64;
    let highest = measured().map(|(_, (_, latencies))| latencies.at(1.0)).max().unwrap_or(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..nines_max, (lowest * 0.8..highest * 1.25 + 1.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("requests at or below")
        .y_desc("response time (log)")
        .x_labels(nines_max as usize + 1)
        .x_label_formatter(&|nines| percentile_label(*nines))
        .y_label_formatter(&|ns| nanoseconds(*ns as u64))
        .label_style(("sans-serif", 16).into_font().color(&INK))
        .axis_style(INK)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (index, (_, latencies)) in measured() {
        let colour = ROW_COLOURS[index % ROW_COLOURS.len()];
        chart.draw_series(LineSeries::new(curve(latencies), colour.stroke_width(2)))?;
        let end = ((latencies.count() as f64).log10(), latencies.at(1.0) as f64);
        chart.draw_series(std::iter::once(Circle::new(end, 4, colour.filled())))?;
    }
    area.present()
}

/// From the smallest to the last quantile that has a request beyond it, then the maximum.
fn curve(latencies: &Latencies) -> Vec<(f64, f64)> {
    let nines_max = (latencies.count() as f64).log10();
    let points = (nines_max * f64::from(POINTS_PER_NINE)) as u32;
    let nines = (0..=points).map(|point| f64::from(point) / f64::from(POINTS_PER_NINE));
    let mut curve: Vec<(f64, f64)> =
        nines.map(|nines| (nines, latencies.at(1.0 - 10f64.powf(-nines)).max(1) as f64)).collect();
    curve.push((nines_max, latencies.at(1.0).max(1) as f64));
    curve
}

/// 1 nine is 90 %, 2.5 nines 99.68 %.
fn percentile_label(nines: f64) -> String {
    let percent = 100.0 * (1.0 - 10f64.powf(-nines));
    let digits = (nines.ceil() as usize).saturating_sub(2) + usize::from(nines.fract() > 0.001);
    format!("{percent:.digits$}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(values: impl IntoIterator<Item = u64>) -> Latencies {
        let mut latencies = Latencies::default();
        values.into_iter().for_each(|value| latencies.record(value));
        latencies
    }

    #[test]
    fn a_curve_ends_where_its_requests_do() {
        let curve = curve(&latencies(1..=1000));
        assert_eq!(curve.first(), Some(&(0.0, 1.0)));
        let (nines, last) = curve[curve.len() - 1];
        assert!((nines - 3.0).abs() < 1e-9 && last == 1000.0);
        assert!(curve.is_sorted_by(|left, right| left.0 <= right.0 && left.1 <= right.1));
    }

    #[test]
    fn every_measured_row_has_a_curve_in_its_colour() {
        let rows = [
            ("a".to_owned(), latencies(1000..3000)),
            ("nothing".to_owned(), latencies([])),
            ("one".to_owned(), latencies([5])),
        ];
        let svg = latency_by_percentile(&rows).unwrap().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for (index, drawn) in [(0, true), (1, false), (2, true)] {
            assert_eq!(svg.to_lowercase().contains(&row_colour(index)), drawn, "row {index}");
        }
        assert!(svg.contains("99%") && svg.contains("#010203") && !svg.contains("NaN"), "{svg}");
        assert_eq!(latency_by_percentile(&rows[1..2]).unwrap(), None);
    }

    #[test]
    fn nines_read_as_percentages() {
        assert_eq!(percentile_label(0.0), "0%");
        assert_eq!(percentile_label(1.0), "90%");
        assert_eq!(percentile_label(2.0), "99%");
        assert_eq!(percentile_label(3.0), "99.9%");
        assert_eq!(percentile_label(2.5), "99.68%");
    }
}
