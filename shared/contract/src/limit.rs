//! Bounds of what may travel. Every one is enforced where a message is decoded.

/// The largest request body, in bytes. A larger one is refused as malformed.
pub const BODY_BYTES: usize = 1024 * 1024;

/// The deepest nesting of arrays and objects in a free-form JSON value. PostgreSQL's own parser runs out of
/// stack somewhat below ten thousand levels.
pub const JSON_DEPTH: usize = 64;

/// The deepest nesting of a whole body, which holds such values a few levels down. An event's payload is a body.
pub const BODY_DEPTH: usize = JSON_DEPTH + 8;

/// How many digits the numbers of a free-form JSON value may take beyond those they are written with, all together:
/// PostgreSQL writes `1e9` out as `1000000000`, so that six bytes could otherwise become a hundred thousand.
pub const JSON_EXPANSION: usize = 64 * 1024;

/// The same for a whole body, which holds a few such values.
pub const BODY_EXPANSION: usize = 4 * JSON_EXPANSION;

/// What an event or a dead letter adds to a body at most, in bytes, headers included: PostgreSQL puts a space after
/// each comma and colon and writes numbers out, and the rest is bounded text.
pub const ENVELOPE_BYTES: usize = BODY_BYTES;

/// The least `max_payload` of a broker, in bytes: what it must take for everything here to be published.
pub const BROKER_PAYLOAD_BYTES: usize = BODY_BYTES + ENVELOPE_BYTES;

/// The longest session, agent or conversation identifier, in characters.
pub const IDENTIFIER_CHARS: usize = 128;

/// The longest context, setting or credential key, in characters.
pub const KEY_CHARS: usize = 256;

/// The longest human-readable name, in characters.
pub const NAME_CHARS: usize = 200;

/// The longest free text (a chat message, a summary), in characters.
pub const TEXT_CHARS: usize = 256 * 1024;

/// The longest text that is embedded along with another one, in characters.
pub const PRECEDING_CHARS: usize = 4_096;

/// The longest service name in a subject, in characters.
pub const SERVICE_CHARS: usize = 64;

/// The longest subject that an outcome is sent to, in bytes. A server closes the connection of whoever publishes on one
/// that does not fit its `max_control_line`, 4096 bytes by default.
pub const REPLY_SUBJECT_BYTES: usize = 256;

/// How long a query may take in the database, in milliseconds: at least, at most, and if its asker does not say.
pub const DEADLINE_MS_MIN: u64 = 10;
/// See [`DEADLINE_MS_MIN`].
pub const DEADLINE_MS_MAX: u64 = 10_000;
/// See [`DEADLINE_MS_MIN`].
pub const DEADLINE_MS_DEFAULT: u64 = 2_000;

/// The longest reason carried by a dead letter or an outcome, in characters; the rest is cut.
pub const REASON_CHARS: usize = 500;
