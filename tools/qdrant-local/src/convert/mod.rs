//! Conversion between the messages of the API and the types of the engine.
//!
//! `on_disk` and `always_ram` are deprecated in favour of `memory`, which servers before 1.18 and this engine do not
//! support.

#[expect(deprecated, reason = "on_disk and always_ram")]
pub(crate) mod describe;
pub(crate) mod filter;
pub(crate) mod id;
#[expect(deprecated, reason = "on_disk")]
pub(crate) mod index;
pub(crate) mod point;
pub(crate) mod query;
#[expect(deprecated, reason = "on_disk and always_ram")]
pub(crate) mod settings;
