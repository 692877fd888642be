//! The findings as a page for a terminal: aligned, no line longer than 100 columns.

use std::fmt::Write;

use super::Examination;
use super::finding::{Finding, State};

const COLUMNS: usize = 100;
/// Where what was found begins: behind the state and the longest name.
const INDENT: usize = 31;

pub(super) fn page(seen: &Examination) -> String {
    let mut page = String::new();
    let title = format!("Linux {}, data directory {}", seen.kernel, seen.data_dir);
    add(&mut page, "", 0, &title);
    for section in &seen.sections {
        let _ = writeln!(page, "\n{}", section.name);
        section.findings.iter().for_each(|finding| add_finding(&mut page, finding));
    }
    page.push_str("\nwhat the engine will choose\n");
    match &seen.choice {
        Some(choice) => choice.words().iter().for_each(|words| add(&mut page, "  ", 4, words)),
        None => page.push_str("  nothing: it cannot run here\n"),
    }
    let count = |state| seen.findings().filter(|finding| finding.state == state).count();
    let verdict = match seen.can_run {
        true => "the engine can run here",
        false => "the engine CANNOT run here",
    };
    let (good, less, missing) = (count(State::Good), count(State::Degraded), count(State::Missing));
    let _ = writeln!(page, "\n{verdict}: {good} good, {less} less than they could be, {missing} missing");
    page
}

fn add_finding(page: &mut String, finding: &Finding) {
    let mark = match finding.state {
        State::Good => "ok",
        State::Degraded => "less",
        State::Missing => "none",
    };
    add(page, &format!("  {mark:<6}{:<23}", finding.name), INDENT, &finding.found);
    if finding.state != State::Good {
        add(page, &format!("{:INDENT$}so: ", ""), INDENT + 4, &finding.consequence);
        add(page, &format!("{:INDENT$}do: ", ""), INDENT + 4, &finding.cure);
    }
}

/// Writes `words` behind `first`, broken between words, further lines at `indent`.
fn add(page: &mut String, first: &str, indent: usize, words: &str) {
    let mut line = first.to_owned();
    let mut is_begun = false;
    for word in words.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        let room = |line: &str| COLUMNS.saturating_sub(line.chars().count());
        if is_begun && word.len() + 1 > room(&line) {
            page.push_str(line.trim_end());
            page.push('\n');
            line = " ".repeat(indent);
        } else if is_begun {
            line.push(' ');
        }
        // What is longer than a line, a path, is broken anywhere.
        while word.len() > room(&line) {
            let rest = word.split_off(room(&line));
            line.extend(word);
            page.push_str(&line);
            page.push('\n');
            (line, word) = (" ".repeat(indent), rest);
        }
        line.extend(word);
        is_begun = true;
    }
    page.push_str(line.trim_end());
    page.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_between_words_and_what_is_longer_anywhere() {
        let mut page = String::new();
        let finding = Finding::good("memlock", "word ".repeat(60)).but(
            State::Degraded,
            "because ".repeat(40),
            "x".repeat(500),
        );
        add_finding(&mut page, &finding);
        let longest = page.lines().map(|line| line.chars().count()).max();
        assert_eq!(longest, Some(COLUMNS), "{page}");
        assert_eq!(page.matches("because").count(), 40, "{page}");
        assert_eq!(page.matches('x').count(), 500, "{page}");
        let (first, rest) = page.split_once('\n').unwrap();
        assert!(first.starts_with("  less  memlock                word word"), "{page}");
        assert!(rest.starts_with(&format!("{:INDENT$}word", "")), "{page}");
    }
}
