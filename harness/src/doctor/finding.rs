//! What was found of one thing: the state of it, what follows, and what would improve it.

use serde::{Deserialize, Serialize};

/// How it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As one would wish.
    Good,
    /// There, and less than it could be.
    Degraded,
    /// Not there, or not for us.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// Its name, the same on every host.
    pub name: String,
    /// How it is.
    pub state: State,
    /// What was found, with numbers.
    pub found: String,
    /// What follows from it; empty where it is good.
    pub consequence: String,
    /// The command, or the change, that improves it; empty where it is good.
    pub cure: String,
}

impl Finding {
    pub(super) fn good(name: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding {
            name: name.into(),
            state: State::Good,
            found: found.into(),
            consequence: String::new(),
            cure: String::new(),
        }
    }

    /// Less than good: what was found stands in `self`.
    pub(super) fn but(
        self,
        state: State,
        consequence: impl Into<String>,
        cure: impl Into<String>,
    ) -> Finding {
        Finding { state, consequence: consequence.into(), cure: cure.into(), ..self }
    }
}

/// Findings that belong together.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Section {
    /// Of what they are.
    pub name: String,
    /// In an order that is the same on every host.
    pub findings: Vec<Finding>,
}

impl Section {
    pub(super) fn new(name: &str, findings: Vec<Finding>) -> Section {
        Section { name: name.to_owned(), findings }
    }
}
