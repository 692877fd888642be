//! The parts of the guide to strategies that follow from the lists, the heads of strategies' files, and kept runs.
//!
//! `STRATEGIES.md` is written by hand but for what stands between `<!-- generated: WHAT -->` and `<!-- end -->`; a test
//! puts that in its place anew and fails when it was not current. So a strategy that is added to the engine's list is in
//! the guide with its path, its copies by link, what it needs, who carries what it does not, what a kept ledger counted
//! of it and what it cost in a kept run. No number is written by hand.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ringlog::transfer::{FreeSignal, Receives};
use ringlog::{Egress, Ingress};
use serde_json::Value;

use crate::copies::Link;
use crate::record::RunRecord;
use crate::tables::{Section, sections, trimmed};

const BEGIN: &str = "<!-- generated: ";
const END: &str = "<!-- end -->";
const LINKS: [Link; 3] = [Link::Gather, Link::NoGather, Link::Loopback];

/// `text` with its generated parts as they should be; `root` is where the sources and kept runs are.
///
/// # Errors
/// When a part does not end, is of no known kind, or what it is made from cannot be read.
pub fn current(text: &str, root: &Path) -> Result<String> {
    let mut made = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, part) = rest.split_at(at);
        let (what, _) = part[BEGIN.len()..].split_once(" -->").context("a marker does not end")?;
        let end = part.find(END).with_context(|| format!("\"{what}\" has no {END}"))?;
        let generated = generated(what, root).with_context(|| format!("generating \"{what}\""))?;
        let _ = write!(made, "{before}{BEGIN}{what} -->\n{}\n{END}", generated.trim_end());
        rest = &part[end + END.len()..];
    }
    made.push_str(rest);
    Ok(made)
}

fn generated(what: &str, root: &Path) -> Result<String> {
    let words: Vec<&str> = what.split_whitespace().collect();
    match words[..] {
        ["list"] => Ok(list()),
        ["strategies", run, ledger] => strategies(root, &Kept::load(root, run, ledger)?),
        ["ledger", ledger, ref asked @ ..] => excerpt(&lines_of(&root.join(ledger))?, asked),
        ["costs", run] => Ok(costs(&sections(&RunRecord::load(&root.join(run))?))),
        _ => bail!("it is no part that can be generated"),
    }
}

/// Every strategy with its path and the copies it declares.
#[must_use]
pub fn list() -> String {
    let mut text =
        "| out | path | CPU copies where the card gathers | where not | loopback |\n|---|---|---|---|---|\n"
            .to_owned();
    for &egress in Egress::ALL {
        let copies = LINKS.map(|link| copies(link, egress));
        let _ = writeln!(text, "| `{egress}` | {} | {} |", path_out(egress), copies.join(" | "));
    }
    text.push_str("\n| in | path | CPU copies |\n|---|---|---|\n");
    for &ingress in Ingress::ALL {
        let copies = trimmed(ingress.profile().cpu_copies);
        let _ = writeln!(text, "| `{ingress}` | `{}` | {copies} |", ingress.path());
    }
    text
}

fn path_out(egress: Egress) -> String {
    match egress.path() {
        Some(path) => format!("`{path}`"),
        None if egress.chooses() => "as chosen".to_owned(),
        None => "nowhere".to_owned(),
    }
}

fn copies(link: Link, egress: Egress) -> String {
    if egress.chooses() { "as chosen".to_owned() } else { trimmed(link.sender_copies(egress)) }
}

/// What was kept of runs.
struct Kept {
    run: String,
    sections: Vec<Section>,
    ledger: Vec<Value>,
}

impl Kept {
    fn load(root: &Path, run: &str, ledger: &str) -> Result<Kept> {
        let record = RunRecord::load(&root.join(run))?;
        let (run, ledger) = (run.to_owned(), lines_of(&root.join(ledger))?);
        Ok(Kept { run, sections: sections(&record), ledger })
    }

    /// What rows of the kept run say of a strategy, as lines of a table.
    fn costs(&self, has: impl Fn(&str) -> bool) -> String {
        let mut lines = String::new();
        for section in &self.sections {
            for row in section.rows.iter().filter(|row| has(&row.name)) {
                let _ = writeln!(
                    lines,
                    "| {}, `{}` | {} MB/s ({}) at {} CPU s/GB |",
                    section.title,
                    row.name,
                    row.throughput.median,
                    row.throughput.range,
                    row.cpu.total.median
                );
            }
        }
        if lines.is_empty() {
            lines = format!("| cost | [the kept run](../{}) has no row of it |\n", self.run);
        }
        lines
    }

    /// Counted copies by link, where the ledger has them.
    fn counted(&self, direction: &str, strategy: &str) -> String {
        let found = LINKS.iter().filter_map(|link| {
            let row = row_of(&self.ledger, direction, strategy, *link)?;
            match row["counted_copies"].as_f64() {
                Some(counted) => Some(format!("{counted:.3} ({})", link.name())),
                None => Some(format!("not: {} ({})", row["why"].as_str()?, link.name())),
            }
        });
        let found: Vec<String> = found.collect();
        if found.is_empty() { "the kept ledger has no row of it".to_owned() } else { found.join(", ") }
    }
}

fn lines_of(ledger: &Path) -> Result<Vec<Value>> {
    let path = ledger.join("ledger.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().with_context(|| format!("{} is no ledger", path.display()))
}

fn row_of<'a>(ledger: &'a [Value], direction: &str, strategy: &str, link: Link) -> Option<&'a Value> {
    let link = serde_json::to_value(link).ok()?;
    ledger
        .iter()
        .find(|row| row["direction"] == direction && row["strategy"] == strategy && row["link"] == link)
}

fn strategies(root: &Path, kept: &Kept) -> Result<String> {
    let mut text = "## Out: from the log to a socket\n".to_owned();
    for &egress in Egress::ALL {
        let name = egress.name();
        let _ =
            write!(text, "\n### Out by `{name}`\n\n{}\n\n| | |\n|---|---|\n", head(root, "egress", name)?);
        let declared = LINKS.map(|link| format!("{} ({})", copies(link, egress), link.name()));
        let _ = writeln!(text, "| path | {} |", path_out(egress));
        let _ = writeln!(text, "| copies declared | {} |", declared.join(", "));
        if !egress.chooses() {
            let _ = writeln!(text, "| copies counted | {} |", kept.counted("egress", name));
        }
        let _ = writeln!(text, "| needs | {} |", egress.needs());
        let _ = writeln!(text, "| carries | {} |", carries(egress));
        let _ = writeln!(text, "| its source may change | {} |", free(egress));
        text.push_str(&kept.costs(|row| row.ends_with(&format!("+{name}"))));
    }
    text.push_str("\n## In: from a socket to the log\n");
    for &ingress in Ingress::ALL {
        let name = ingress.name();
        let _ =
            write!(text, "\n### In by `{name}`\n\n{}\n\n| | |\n|---|---|\n", head(root, "ingress", name)?);
        let _ = writeln!(text, "| path | `{}` |", ingress.path());
        let _ = writeln!(text, "| copies declared | {} |", trimmed(ingress.profile().cpu_copies));
        let _ = writeln!(text, "| copies counted | {} |", kept.counted("ingress", name));
        let _ = writeln!(text, "| needs | {} |", ingress.needs());
        let _ = writeln!(text, "| receives | {} |", receives(ingress));
        text.push_str(&kept.costs(|row| row.starts_with(&format!("{name}+"))));
    }
    Ok(text)
}

/// The head of a strategy's file as Markdown: references to code lose their brackets.
fn head(root: &Path, direction: &str, name: &str) -> Result<String> {
    let path = root.join(format!("engine/src/transfer/{direction}/{name}.rs"));
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    let head: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    let mut head = head.join("\n");
    while let Some(at) = head.find("[`") {
        let end = at + head[at..].find("`]").context("a reference to code does not end")?;
        let short = head[at + 2..end].rsplit("::").next().unwrap_or_default().to_owned();
        head.replace_range(at..end + 2, &format!("`{short}`"));
    }
    Ok(head)
}

fn carries(egress: Egress) -> String {
    if egress.chooses() {
        return "what there is, by others".to_owned();
    }
    let memory = match egress.carrier_of_memory() {
        own if own == egress => "memory of the tail cache".to_owned(),
        other => format!("memory of the tail cache goes by `{other}`"),
    };
    let mut files = match egress.carrier_of_file(true, true) {
        own if own == egress => "ranges of files".to_owned(),
        other => format!("ranges of files go by `{other}`"),
    };
    for (without, other) in [
        ("O_DIRECT", egress.carrier_of_file(false, true)),
        ("a map (the active segment has none)", egress.carrier_of_file(true, false)),
    ] {
        if other != egress.carrier_of_file(true, true) {
            let _ = write!(files, ", without {without} by `{other}`");
        }
    }
    format!("{memory}; {files}")
}

fn free(egress: Egress) -> &'static str {
    match egress.free_signal() {
        _ if egress.chooses() => "as the chosen one says",
        FreeSignal::Completion => "when the operation has completed: the kernel has its own copy",
        FreeSignal::Release => "when the kernel has released it, after the peer's acknowledgement",
        FreeSignal::None => "never: nobody tells when, so only what stays as it is goes this way",
    }
}

fn receives(ingress: Ingress) -> &'static str {
    match ingress.receives() {
        _ if ingress.receives_into_file() => "into the file itself",
        Receives::Private => "into memory of the connection's",
        Receives::InPlace => "into the memory that is written, where it pays",
        Receives::Provided => "into buffers that all connections share",
        Receives::Spliced => "heads only: the rest goes by a pipe",
    }
}

/// Rows of a ledger, asked for as `out/sendfile`, `in/copy`, `path/in_place+tail`.
fn excerpt(ledger: &[Value], asked: &[&str]) -> Result<String> {
    let kernel = ledger.first().and_then(|ground| ground["kernel"].as_str()).unwrap_or("unknown");
    let mut text = format!(
        "| Linux {kernel} | link | expected | counted | overwritten after the send | system calls a MiB |\n\
         |---|---|---|---|---|---|\n"
    );
    for asked in asked {
        let (way, strategy) = asked.split_once('/').context("a row is asked for as out/sendfile")?;
        let direction = match way {
            "out" => "egress",
            "in" => "ingress",
            _ => way,
        };
        let strategy = strategy.replace('+', " + ");
        let rows = LINKS.map(|link| Some((link, row_of(ledger, direction, &strategy, link)?)));
        anyhow::ensure!(rows.iter().any(Option::is_some), "the ledger has no row \"{asked}\"");
        for (link, row) in rows.into_iter().flatten() {
            let _ = write!(text, "| `{strategy}`, {way} | {} |", link.name());
            let Some(bytes) = row["payload_bytes"].as_f64() else {
                let _ = writeln!(text, " lacking there: {} | | | |", row["why"].as_str().unwrap_or_default());
                continue;
            };
            let number =
                |value: &Value| value.as_f64().map_or("-".to_owned(), |number| format!("{number:.3}"));
            let oracle = match &row["observed"]["oracle"] {
                Value::String(oracle) if oracle == "shared" => "new bytes came: shared",
                Value::String(oracle) if oracle == "copied" => "old bytes came: copied",
                _ => "-",
            };
            let calls = row["costs"]["system_calls"].as_f64().unwrap_or(0.0) / (bytes / f64::from(1 << 20));
            let (expected, counted) = (number(&row["expected_copies"]), number(&row["counted_copies"]));
            let _ = writeln!(text, " {expected} | {counted} | {oracle} | {calls:.1} |");
        }
    }
    Ok(text)
}

/// Every row of a kept run.
fn costs(sections: &[Section]) -> String {
    let mut text = "| load | row | MB/s, median (blocks) | server CPU s/GB | of its floor's MB/s | CPU of its floor, times |\n\
                    |---|---|---|---|---|---|\n"
        .to_owned();
    for section in sections {
        for row in &section.rows {
            let _ = writeln!(
                text,
                "| {} | `{}` | {} ({}) | {} | {} | {} |",
                section.title,
                row.name,
                row.throughput.median,
                row.throughput.range,
                row.cpu.total.median,
                row.of_floor[0].median,
                row.of_floor[1].median,
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_parts_are_written_anew() {
        let made = current("a\n<!-- generated: list -->\nold\n<!-- end -->\nz\n", Path::new("/no")).unwrap();
        assert!(made.starts_with("a\n<!-- generated: list -->\n| out |"), "{made}");
        assert!(made.ends_with("\n<!-- end -->\nz\n") && !made.contains("old"), "{made}");
        assert_eq!(current(&made, Path::new("/no")).unwrap(), made);
        for (text, why) in [
            ("<!-- generated: list -->", "has no <!-- end -->"),
            ("<!-- generated: list", "a marker does not end"),
            ("<!-- generated: poem --><!-- end -->", "generating \"poem\""),
            ("<!-- generated: ledger x --><!-- end -->", "generating \"ledger x\""),
        ] {
            let error = format!("{:#}", current(text, Path::new("/no")).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn every_strategy_is_in_the_list_with_its_path() {
        let list = list();
        for egress in Egress::ALL {
            assert!(list.contains(&format!("| `{egress}` | ")), "{egress}");
        }
        for ingress in Ingress::ALL {
            assert!(list.contains(&format!("| `{ingress}` | `card -(DMA)-> socket ")), "{ingress}");
        }
        assert!(list.contains("| `copy` | `disk -(DMA)-> page cache -(CPU, read)-> our memory"), "{list}");
        assert!(list.contains("socket -(DMA)-> card` | 2 | 3 | 2 |"), "{list}");
    }

    #[test]
    fn fallbacks_are_the_engines() {
        let of = |name: &str| carries(name.parse().unwrap());
        assert_eq!(
            of("direct"),
            "memory of the tail cache goes by `tail`; ranges of files, without O_DIRECT by `copy`"
        );
        assert_eq!(
            of("tail_zc"),
            "memory of the tail cache; ranges of files go by `direct_zc`, without O_DIRECT by `copy`"
        );
        assert!(
            of("mmap").ends_with("ranges of files, without a map (the active segment has none) by `copy`")
        );
    }
}
