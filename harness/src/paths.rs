//! Which ways the bytes of a row took under a load: paths from the engine's lists, and who carried what by its counters.
//!
//! A strategy does not carry every piece: `tail` sends from memory, and who is far behind is served from files by another.
//! Where the server counted who moved the bytes, whoever moved most of them is shown, with his share; else whom the
//! engine's own rules name.

use ringlog::transfer::{BytePath, Place};
use ringlog::{Egress, Ingress};

use crate::copies::Link;
use crate::record::{CellRecord, RunRecord};
use crate::spec::{Load, Pair};
use crate::tables::trimmed;

/// What readers find their bytes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readers {
    /// Close behind the producers.
    AtTheEnd,
    /// Far behind: what they want is on the disk.
    Behind,
}

/// One way in and one way out, as far as the load has both.
#[derive(Clone, PartialEq, Debug)]
pub struct Journey {
    /// The row, and which readers where there are two kinds.
    pub name: String,
    /// From the producer's card to the disk.
    pub ingress: Option<BytePath>,
    /// From where the bytes are to the consumer's card.
    pub egress: Option<BytePath>,
    /// Copies, and who carried the bytes if not the row's own egress.
    pub words: String,
}

impl Journey {
    /// As SVG.
    #[must_use]
    pub fn picture(&self) -> String {
        crate::picture::picture(self)
    }
}

/// The journeys of a row's bytes under a load; none of a server that is not ours, which counts nothing.
#[must_use]
pub fn journeys(record: &RunRecord, row: &Pair, load: Load) -> Vec<Journey> {
    let (Ok(ingress), Ok(egress)) = (row.ingress.parse::<Ingress>(), row.egress.parse::<Egress>()) else {
        return Vec::new();
    };
    let mut cells = record.cells.iter().filter(|cell| cell.cell.row == *row);
    if cells.all(|cell| cell.server_counters.is_null()) {
        return Vec::new();
    }
    let counted = carried_most(record, row, load);
    let of = |readers| journey(row, ingress, egress, readers, counted);
    match load {
        Load::Tail => vec![of(Readers::AtTheEnd)],
        Load::CatchUp | Load::FanOut => vec![Journey { ingress: None, ..of(Readers::Behind) }],
        // Who carried is not told apart there.
        Load::Mixed => [(Readers::AtTheEnd, "at the end"), (Readers::Behind, "behind")]
            .map(|(readers, words)| {
                let journey = journey(row, ingress, egress, readers, None);
                Journey { name: format!("{row}, {words}"), ..journey }
            })
            .into(),
        Load::Produce => {
            let journey = journey(row, ingress, egress, Readers::AtTheEnd, counted);
            vec![Journey { egress: None, words: copies_in(ingress), ..journey }]
        }
    }
}

fn journey(
    row: &Pair,
    ingress: Ingress,
    egress: Egress,
    readers: Readers,
    counted: Option<(Egress, f64)>,
) -> Journey {
    let carrier = counted.map_or_else(|| carrier(ingress, egress, readers), |(carrier, _)| carrier);
    let way_in = if readers == Readers::AtTheEnd { copies_in(ingress) + ", " } else { String::new() };
    let way_out = carrier.path().map_or_else(|| "out as chosen".to_owned(), |path| copies_of(path) + " out");
    let mut words = way_in + &way_out;
    let late = Link::Loopback.sender_copies(carrier) - carrier.profile().cpu_copies;
    if late > 0.0 {
        words += &format!(" (over the loopback {} more, made late by the kernel)", trimmed(late));
    }
    if carrier != egress {
        let share = counted.map_or_else(
            || "the bytes".to_owned(),
            |(_, share)| format!("{:.0} % of the bytes", 100.0 * share),
        );
        words += &format!("; {egress} left {share} to {carrier}");
    }
    let cached = readers == Readers::AtTheEnd && !ingress.is_direct();
    let path = carrier.path().map(|path| if cached { path.beginning_at(Place::PageCache) } else { path });
    Journey {
        name: row.to_string(),
        ingress: (readers == Readers::AtTheEnd).then(|| ingress.path()),
        egress: path,
        words,
    }
}

fn copies_in(ingress: Ingress) -> String {
    format!("{} in", copies_of(ingress.path()))
}

fn copies_of(path: BytePath) -> String {
    match path.steps.iter().filter(|step| step.kind.is_copy()).count() {
        0 => "no copy".to_owned(),
        1 => "1 copy".to_owned(),
        number => format!("{number} copies"),
    }
}

/// Whom the engine's rules name: whoever stages has a tail cache, and files are sealed behind its end.
fn carrier(ingress: Ingress, egress: Egress, readers: Readers) -> Egress {
    let staged = ingress.path().visits(Place::Staging);
    match readers {
        _ if egress.chooses() => egress,
        Readers::AtTheEnd if staged && egress.carries().memory => egress.carrier_of_memory(),
        Readers::AtTheEnd => egress.carrier_of_file(true, false),
        Readers::Behind => egress.carrier_of_file(true, true),
    }
}

/// Who moved most bytes of a row under a load, and which part of all that were moved. A row's server counts through the
/// whole run, so a cell has what was added since the one before it.
fn carried_most(record: &RunRecord, row: &Pair, load: Load) -> Option<(Egress, f64)> {
    let of_row = |cell: &&CellRecord| cell.cell.row == *row && !cell.cell.again;
    let mut cells: Vec<&CellRecord> = record.cells.iter().filter(of_row).collect();
    cells.sort_by(|left, right| left.start_seconds.total_cmp(&right.start_seconds));
    let carried_by = |egress: &Egress| -> u64 {
        let (mut before, mut carried) = (0, 0);
        for cell in &cells {
            let after = cell.server_counters["egress"][egress.name()]["bytes"].as_u64().unwrap_or(before);
            // Less than before is a server that began anew.
            let added = after.checked_sub(before).unwrap_or(after);
            carried += if cell.cell.load == load { added } else { 0 };
            before = after;
        }
        carried
    };
    let carried: Vec<(Egress, u64)> =
        Egress::ALL.iter().map(|egress| (*egress, carried_by(egress))).collect();
    let all: u64 = carried.iter().map(|(_, bytes)| bytes).sum();
    let (most, bytes) = carried.into_iter().max_by_key(|(_, bytes)| *bytes)?;
    (bytes > 0).then(|| (most, bytes as f64 / all as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::canned;

    fn pair(ingress: &str, egress: &str) -> Pair {
        Pair { ingress: ingress.to_owned(), egress: egress.to_owned() }
    }

    fn out(ingress: &str, egress: &str, readers: Readers) -> (String, String) {
        let (way_in, way_out) = (ingress.parse().unwrap(), egress.parse().unwrap());
        let journey = journey(&pair(ingress, egress), way_in, way_out, readers, None);
        (journey.egress.map_or_else(String::new, |path| path.to_string()), journey.words)
    }

    #[test]
    fn bytes_begin_where_the_load_finds_them() {
        let [tail, behind] = [Readers::AtTheEnd, Readers::Behind];
        let warm = "page cache =(sendfile)= socket -(DMA)-> card";
        assert_eq!(out("buffered", "sendfile", tail).0, warm);
        assert_eq!(out("buffered", "sendfile", behind).0, format!("disk -(DMA)-> {warm}"));
        // Written past the cache, it is not there.
        assert_eq!(out("copy", "sendfile", tail).0, format!("disk -(DMA)-> {warm}"));
        assert_eq!(out("copy", "tail", tail).0, "staging -(CPU, send)-> socket -(DMA)-> card");
    }

    #[test]
    fn who_does_not_carry_a_piece_is_not_drawn_with_it() {
        let [tail, behind] = [Readers::AtTheEnd, Readers::Behind];
        let (path, words) = out("copy", "tail", behind);
        assert!(path.starts_with("disk -(DMA, O_DIRECT)-> our memory"), "{path}");
        assert_eq!(words, "1 copy out; tail left the bytes to direct");
        assert_eq!(out("buffered", "mmap", tail).1, "2 copies in, 2 copies out; mmap left the bytes to copy");
        assert_eq!(out("buffered", "mmap", behind).1, "1 copy out");
        let (path, words) = out("in_place", "tail_zc", tail);
        assert_eq!(path, "staging =(SEND_ZC)= socket -(DMA)-> card");
        assert!(words.starts_with("1 copy in, no copy out (over the loopback 1 more, made late"), "{words}");
        assert_eq!(out("copy", "auto", behind), (String::new(), "out as chosen".to_owned()));
    }

    #[test]
    fn counters_say_who_carried_under_this_load() {
        let mut record = canned();
        let auto = pair("copy", "auto");
        let (mut tail, mut copy, mut direct) = (0, 0, 0);
        for (number, cell) in record.cells.iter_mut().enumerate() {
            (cell.cell.row, cell.cell.again, cell.start_seconds) = (auto.clone(), false, number as f64);
            match cell.cell.load {
                Load::Tail => (tail, copy) = (tail + 300, copy + 100),
                _ => direct += 5000,
            }
            cell.server_counters = serde_json::json!({
                "egress": {"tail": {"bytes": tail}, "copy": {"bytes": copy}, "direct": {"bytes": direct}}
            });
        }
        let of = |record: &RunRecord, load| journeys(record, &auto, load).remove(0);
        let found = of(&record, Load::Tail);
        assert_eq!(found.words, "2 copies in, 1 copy out; auto left 75 % of the bytes to tail");
        assert_eq!(found.egress, Egress::Tail.path());
        assert_eq!(of(&record, Load::CatchUp).words, "1 copy out; auto left 100 % of the bytes to direct");
        record.cells.iter_mut().for_each(|cell| cell.server_counters = serde_json::Value::Null);
        assert!(journeys(&record, &auto, Load::Tail).is_empty(), "whose counters are not there is not ours");
    }
}
