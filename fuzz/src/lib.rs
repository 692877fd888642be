//! What must hold of bytes that come from outside, one module a fuzz target; each `check` takes the fuzzer's bytes and
//! panics where a promise is broken. The programs in `fuzz_targets/` only hand over.
//!
//! | target | bytes become | what is asked |
//! |---|---|---|
//! | `request` | a message of the protocol | it decodes or is refused, in little memory; what was accepted survives being written |
//! | `conversation` | what clients send to a broker in the simulated world | answers in order, and the next client is served |
//! | `record_batch` | a batch, and a segment of several | what is accepted agrees with its numbers, and stays accepted when stamped |
//! | `recovery` | a segment and what happened to it | the walk keeps what must be there, serves only what was written, and does not depend on how it is fed |
//! | `directory` | a data directory and what happened to it | it opens or is refused; what is served was appended there |
//! | `own_files` | our small files and names | what is accepted survives being written |

#![forbid(unsafe_code)]

pub mod conversation;
pub mod directory;
pub mod input;
pub mod own_files;
pub mod record_batch;
pub mod recovery;
pub mod request;
