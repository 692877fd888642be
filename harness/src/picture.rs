//! The path of a byte as a picture: places as bands, one above the other; the way in on the left, the way out on the right.
//!
//! ```text
//! card         [      ]                  [      ]
//! socket       [ in   ]                  [ out  ]
//! pipe                      [master]     [ pipe ]
//! our memory   [ in   ]     [staging]    [ out  ]
//! page cache   [      ]                  [      ]
//! disk         [      ]                  [      ]
//! ```
//!
//! A copy by the CPU is a thick arrow with its number, counted from the producer to the consumer; what a device moves by
//! itself is a dashed arrow; a page that is passed on or mapped is a double line without a head, since nothing moves. A
//! byte that passes a band without a box was never there. Drawn by hand as SVG like [`crate::intervals`]: the page's style
//! sheet colours it, every mark has a shape of its own, and the words say it again.

use std::fmt::Write as _;

use ringlog::transfer::{BytePath, Kind, Place, Step};

use crate::paths::Journey;

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 412.0;
/// Where bands begin; names of places are left of it.
const LEFT: f64 = 82.0;
const IN: f64 = 120.0;
const MIDDLE: f64 = 218.0;
const OUT: f64 = 322.0;
/// Half a box.
const HALF: f64 = 35.0;
/// From the middle of staging to where bytes come in, and to where they leave.
const ASIDE: f64 = 14.0;

/// Which way a byte goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// A stripe of the picture, with all places of its kind.
struct Band {
    name: &'static str,
    top: f64,
    bottom: f64,
    places: &'static [Place],
}

const BANDS: [Band; 6] = [
    Band { name: "card", top: 8.0, bottom: 34.0, places: &[Place::Card] },
    Band { name: "socket", top: 72.0, bottom: 98.0, places: &[Place::Socket] },
    Band { name: "pipe", top: 136.0, bottom: 162.0, places: &[Place::Pipe, Place::MasterPipe] },
    Band {
        name: "our memory",
        top: 200.0,
        bottom: 236.0,
        places: &[Place::Memory, Place::Staging, Place::Map],
    },
    Band { name: "page cache", top: 274.0, bottom: 300.0, places: &[Place::PageCache] },
    Band { name: "disk", top: 338.0, bottom: 364.0, places: &[Place::Disk] },
];

/// A place of the picture: a column of a band.
#[derive(Clone, Copy, PartialEq)]
struct Spot {
    place: Place,
    x: f64,
}

impl Spot {
    fn band(self) -> &'static Band {
        let band = BANDS.iter().find(|band| band.places.contains(&self.place));
        band.expect("every place has its band")
    }

    /// What stands in its box, by lines.
    fn words(self) -> &'static [&'static str] {
        let is_in = self.x < MIDDLE;
        match self.place {
            Place::Socket if is_in => &["producer"],
            Place::Socket => &["consumer"],
            Place::Pipe => &["pipe"],
            Place::MasterPipe => &["master"],
            Place::Memory if is_in => &["received"],
            Place::Memory => &["read into"],
            Place::Staging => &["staging,", "tail cache"],
            Place::Map => &["mapped"],
            Place::Card => &["packets"],
            Place::PageCache => &["pages"],
            Place::Disk => &["segment"],
        }
    }
}

/// A step of a path, and where it is drawn.
struct Arrow {
    from: Spot,
    to: Spot,
    step: Step,
}

/// The picture of a journey.
#[must_use]
pub fn picture(journey: &Journey) -> String {
    let mut arrows = Vec::new();
    let mut spots: Vec<Spot> = Vec::new();
    for (path, direction) in [(journey.ingress, Direction::In), (journey.egress, Direction::Out)] {
        let Some(path) = path else { continue };
        for arrow in arrows_of(path, direction) {
            for spot in [arrow.from, arrow.to] {
                if !spots.contains(&spot) {
                    spots.push(spot);
                }
            }
            arrows.push(arrow);
        }
    }
    let words = format!("{}: {}", journey.words, describe(journey));
    let title = format!("The path of a byte, {}", journey.name);
    let mut svg = format!(
        "<svg class=\"chart journey\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}: {words}\">\
         <title>{title}</title><desc>{words}</desc>"
    );
    for band in &BANDS {
        let class = if band.places.contains(&Place::Memory) { "band ours" } else { "band" };
        let Band { name, top, bottom, .. } = band;
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=\"{LEFT}\" y=\"{top}\" width=\"{:.0}\" height=\"{:.0}\"/>\
             <text class=\"faint\" x=\"0\" y=\"{:.0}\">{name}</text>",
            WIDTH - LEFT,
            bottom - top,
            (top + bottom) / 2.0 + 4.0
        );
    }
    for spot in &spots {
        // A file is one, and so are its pages, whoever comes by.
        let one = matches!(spot.place, Place::PageCache | Place::Disk);
        let same = spots.iter().filter(|other| other.place == spot.place && one || *other == spot);
        let columns = same.map(|spot| spot.x);
        let (first, last) = columns.fold((spot.x, spot.x), |(low, high), x| (low.min(x), high.max(x)));
        if first == spot.x {
            draw_box(&mut svg, *spot, last);
        }
    }
    let mut copies = 0;
    for arrow in &arrows {
        copies += u32::from(arrow.step.kind.is_copy());
        draw_arrow(&mut svg, arrow, copies);
    }
    if journey.egress.is_none() && journey.words.contains("as chosen") {
        let _ = write!(svg, "<text x=\"{OUT}\" y=\"222\" text-anchor=\"middle\">as chosen</text>");
    }
    legend(&mut svg);
    svg.push_str("</svg>");
    svg
}

/// The steps of a path with their places; bytes keep their column where a place does not ask for another.
fn arrows_of(path: BytePath, direction: Direction) -> Vec<Arrow> {
    let own = if direction == Direction::In { IN } else { OUT };
    let column = |place| match place {
        Place::Staging | Place::MasterPipe => Some(MIDDLE),
        Place::Card | Place::Disk | Place::PageCache => None,
        _ => Some(own),
    };
    let mut places = vec![path.from];
    places.extend(path.steps.iter().map(|step| step.to));
    // What has no column of its own has that of the place before it, at the begin of the one behind it.
    let mut spots: Vec<Spot> = Vec::with_capacity(places.len());
    for (index, &place) in places.iter().enumerate() {
        let before = spots.last().map(|spot| spot.x);
        let behind = || places[index..].iter().find_map(|place| column(*place));
        let x = column(place).or(before).or_else(behind).unwrap_or(own);
        spots.push(Spot { place, x });
    }
    let steps = path.steps.iter().zip(spots.windows(2));
    steps.map(|(step, ends)| Arrow { from: ends[0], to: ends[1], step: *step }).collect()
}

/// A box from the spot's column to another.
fn draw_box(svg: &mut String, spot: Spot, to_x: f64) {
    let Band { top, bottom, .. } = spot.band();
    let middle = (spot.x + to_x) / 2.0;
    let _ = write!(
        svg,
        "<rect class=\"place\" x=\"{:.0}\" y=\"{top}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"5\"/>",
        spot.x - HALF,
        to_x - spot.x + 2.0 * HALF,
        bottom - top
    );
    let lines = spot.words();
    for (line, words) in lines.iter().enumerate() {
        let y = (top + bottom) / 2.0 + 4.0 + 13.0 * (line as f64 - (lines.len() as f64 - 1.0) / 2.0);
        let _ = write!(svg, "<text x=\"{middle:.0}\" y=\"{y:.1}\" text-anchor=\"middle\">{words}</text>");
    }
}

fn draw_arrow(svg: &mut String, arrow: &Arrow, number: u32) {
    let Arrow { from, to, step } = arrow;
    let (above, below) = (from.band(), to.band());
    // From edge to edge; within a band from side to side.
    let flat = above.top == below.top;
    let (x1, y1, x2, y2) = if flat {
        let y = (above.top + above.bottom) / 2.0;
        (from.x + HALF, y, to.x - HALF, y)
    } else if above.top < below.top {
        (from.x, above.bottom, to.x, below.top)
    } else {
        (from.x, above.top, to.x, below.bottom)
    };
    let (x1, x2) = match (from.place, to.place) {
        _ if flat => (x1, x2),
        (_, Place::Staging) => (x1, x2 - ASIDE),
        (Place::Staging, _) if y2 < y1 => (x1 + ASIDE, x2),
        _ => (x1, x2),
    };
    let middle = (y1 + y2) / 2.0;
    let line = |end_x: f64, end_y: f64| match x1 == x2 || flat {
        true => format!("M{x1:.0} {y1:.0}L{end_x:.0} {end_y:.0}"),
        false => format!("M{x1:.0} {y1:.0}C{x1:.0} {middle:.0} {x2:.0} {middle:.0} {end_x:.0} {end_y:.0}"),
    };
    let (towards_x, towards_y) = if flat { ((x2 - x1).signum(), 0.0) } else { (0.0, (y2 - y1).signum()) };
    let class = match step.kind {
        Kind::Dma => "dma",
        Kind::Copy | Kind::OwnCopy => "copy",
        Kind::Share | Kind::Map => "share",
    };
    match step.kind {
        Kind::Share | Kind::Map => {
            let line = line(x2, y2);
            let _ = write!(svg, "<path class=\"share\" d=\"{line}\"/><path class=\"between\" d=\"{line}\"/>");
        }
        _ => {
            // The line ends in its head, which ends at the box.
            let line = line(x2 - 7.0 * towards_x, y2 - 7.0 * towards_y);
            let (back_x, back_y) = (x2 - 9.0 * towards_x, y2 - 9.0 * towards_y);
            let (side_x, side_y) = (5.0 * towards_y, 5.0 * towards_x);
            let _ = write!(
                svg,
                "<path class=\"{class}\" d=\"{line}\"/>\
                 <path class=\"head {class}\" d=\"M{x2:.0} {y2:.0}L{:.0} {:.0}L{:.0} {:.0}Z\"/>",
                back_x - side_x,
                back_y - side_y,
                back_x + side_x,
                back_y + side_y
            );
        }
    }
    // Words and number stand where the step begins, beside its line.
    let (x, y) = match flat {
        true => (x1 + 10.0, y1),
        false => (x1, y1 + 17.0 * (y2 - y1).signum()),
    };
    if step.kind.is_copy() {
        let _ = write!(
            svg,
            "<circle class=\"number\" cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"9\"/>\
             <text class=\"strong\" x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{number}</text>",
            y + 4.5
        );
    }
    let (first, second) = match (step.kind, step.by) {
        (Kind::Dma, by) => ("DMA", by),
        (_, by) => (by, ""),
    };
    let (words_x, words_y, anchor) = match flat {
        true => ((x1 + x2) / 2.0, above.top - 6.0, "middle"),
        false => (x + 14.0, if second.is_empty() { y + 4.0 } else { y - 2.0 }, "start"),
    };
    let _ = write!(
        svg,
        "<text class=\"faint\" x=\"{words_x:.0}\" y=\"{words_y:.0}\" text-anchor=\"{anchor}\">{first}"
    );
    if !second.is_empty() {
        let _ = write!(svg, "<tspan x=\"{words_x:.0}\" dy=\"12\">{second}</tspan>");
    }
    svg.push_str("</text>");
}

fn legend(svg: &mut String) {
    let y = HEIGHT - 16.0;
    let words_y = y + 4.0;
    let _ = write!(
        svg,
        "<path class=\"copy\" d=\"M2 {y}h20\"/><path class=\"head copy\" d=\"M29 {y}l-9 -5v10Z\"/>\
         <text class=\"faint\" x=\"35\" y=\"{words_y}\">the CPU copies</text>\
         <path class=\"dma\" d=\"M136 {y}h20\"/><path class=\"head dma\" d=\"M163 {y}l-9 -5v10Z\"/>\
         <text class=\"faint\" x=\"169\" y=\"{words_y}\">a device moves</text>\
         <path class=\"share\" d=\"M274 {y}h26\"/><path class=\"between\" d=\"M274 {y}h26\"/>\
         <text class=\"faint\" x=\"306\" y=\"{words_y}\">the same page</text>"
    );
}

/// The picture for who does not see it.
fn describe(journey: &Journey) -> String {
    let leg = |name: &str, path: BytePath| {
        let step = |step: &Step| {
            let (to, by) = (step.to.name(), step.by);
            match step.kind {
                Kind::Dma if by.is_empty() => format!("by DMA to {to}"),
                Kind::Dma => format!("by DMA ({by}) to {to}"),
                Kind::Copy => format!("copied by the kernel ({by}) to {to}"),
                Kind::OwnCopy => format!("copied by ourselves to {to}"),
                Kind::Share => format!("as the same page ({by}) in {to}"),
                Kind::Map => format!("as the same page (mapped) in {to}"),
            }
        };
        let steps: Vec<String> = path.steps.iter().map(step).collect();
        format!("{name} from {}, {}", path.from.name(), steps.join(", "))
    };
    let legs = [("in", journey.ingress), ("out", journey.egress)];
    let legs = legs.iter().filter_map(|(name, path)| path.map(|path| leg(name, path)));
    legs.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use ringlog::{Egress, Ingress};

    use super::*;

    fn journey(ingress: Ingress, egress: Egress) -> Journey {
        Journey {
            name: format!("{ingress}+{egress}"),
            ingress: Some(ingress.path()),
            egress: egress.path(),
            words: "words".to_owned(),
        }
    }

    #[test]
    fn every_pair_has_a_picture_with_all_its_steps() {
        for &ingress in Ingress::ALL {
            for &egress in Egress::ALL.iter().filter(|egress| egress.delivers()) {
                let journey = journey(ingress, egress);
                let svg = picture(&journey);
                let steps = |kind: fn(Kind) -> bool| {
                    let paths = journey.ingress.iter().chain(&journey.egress);
                    paths.flat_map(|path| path.steps).filter(|step| kind(step.kind)).count()
                };
                let drawn = |class: &str| svg.matches(&format!("<path class=\"{class}\"")).count();
                // One of each is in the legend.
                assert_eq!(drawn("copy") - 1, steps(Kind::is_copy), "{}", journey.name);
                assert_eq!(drawn("head copy"), drawn("copy"), "{}", journey.name);
                assert_eq!(drawn("dma") - 1, steps(|kind| kind == Kind::Dma), "{}", journey.name);
                let shared = steps(|kind| matches!(kind, Kind::Share | Kind::Map));
                assert_eq!(drawn("share") - 1, shared, "{}", journey.name);
                let copies = steps(Kind::is_copy);
                for number in 1..=copies {
                    assert!(svg.contains(&format!(">{number}</text>")), "copy {number} of {}", journey.name);
                }
                assert!(!svg.contains(&format!(">{}</text>", copies + 1)), "{}", journey.name);
                assert_eq!(svg.matches("<circle").count(), copies, "{}", journey.name);
            }
        }
    }

    #[test]
    fn who_does_not_see_it_hears_it() {
        let svg = picture(&journey(Ingress::Buffered, Egress::Sendfile));
        let words = "in from card, by DMA to socket, copied by the kernel (recv) to our memory, copied by the kernel \
                     (write) to page cache, by DMA (later) to disk; out from disk, by DMA to page cache, as the same \
                     page (sendfile) in socket, by DMA to card";
        assert!(svg.contains(&format!("<desc>words: {words}</desc>")), "{svg}");
        assert!(
            svg.contains("role=\"img\" aria-label=\"The path of a byte, buffered+sendfile: words: in from")
        );
        assert!(svg.contains("<title>The path of a byte, buffered+sendfile</title>"));
    }

    #[test]
    fn the_tail_cache_is_one_place_for_both_ways() {
        let svg = picture(&journey(Ingress::InPlace, Egress::Tail));
        assert_eq!(svg.matches(">staging,</text>").count(), 1);
        // Sent from where it was received into: the page cache has no box.
        let boxes = svg.matches("class=\"place\"").count();
        assert_eq!(boxes, 6, "two cards, two sockets, staging, disk: {svg}");
        let svg = picture(&journey(Ingress::Buffered, Egress::Sendfile));
        assert_eq!(svg.matches(">pages</text>").count(), 1, "one page cache: {svg}");
        assert_eq!(svg.matches(">segment</text>").count(), 1, "one file: {svg}");
    }

    #[test]
    fn everything_lies_within_the_picture() {
        for &ingress in Ingress::ALL {
            for &egress in Egress::ALL {
                for (path, direction) in
                    [(Some(ingress.path()), Direction::In), (egress.path(), Direction::Out)]
                {
                    for arrow in path.into_iter().flat_map(|path| arrows_of(path, direction)) {
                        for spot in [arrow.from, arrow.to] {
                            assert!(spot.x - HALF >= LEFT && spot.x + HALF <= WIDTH, "{ingress}+{egress}");
                        }
                        assert!(arrow.from != arrow.to, "{ingress}+{egress}: a step leads somewhere");
                    }
                }
            }
        }
    }
}
