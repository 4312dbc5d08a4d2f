//! Limits of messages. Each is enforced when a message is decoded.

/// The largest request body, in bytes. A larger one is rejected as malformed.
pub const BODY_BYTES: usize = 1024 * 1024;

/// The deepest nesting of arrays and objects in a free-form JSON value. PostgreSQL's parser exhausts its stack slightly
/// below ten thousand levels.
pub const JSON_DEPTH: usize = 64;

/// The deepest nesting of a whole body, which contains such values a few levels down. An event's payload is a body.
pub const BODY_DEPTH: usize = JSON_DEPTH + 8;

/// The maximum number of digits by which all numbers of a free-form JSON value may grow when they are written without
/// exponents: PostgreSQL stores `1e9` as `1000000000`, so that without a limit six bytes could become a hundred
/// thousand.
pub const JSON_EXPANSION: usize = 64 * 1024;

/// The same for a whole body, which contains a few such values.
pub const BODY_EXPANSION: usize = 4 * JSON_EXPANSION;

/// The most digits of a number before the decimal point, written without an exponent. PostgreSQL stores no more.
pub const WHOLE_DIGITS: usize = 131_072;

/// The most digits of a number after the decimal point, written without an exponent. PostgreSQL stores no more.
pub const FRACTION_DIGITS: usize = 16_383;

/// The maximum number of bytes that an event or a dead letter adds to a body, headers included: PostgreSQL inserts a
/// space after each comma and colon and writes numbers without exponents, and all other fields have limits.
pub const ENVELOPE_BYTES: usize = BODY_BYTES;

/// The smallest `max_payload` that the NATS server needs, in bytes, so that every valid message can be published.
pub const BROKER_PAYLOAD_BYTES: usize = BODY_BYTES + ENVELOPE_BYTES;

/// The largest payload of an event, in bytes, as PostgreSQL writes it. No body becomes as large: commas and colons make it
/// half as large again, and numbers without exponents add [`BODY_EXPANSION`]. The rest of the event and its headers fit
/// beside it into [`BROKER_PAYLOAD_BYTES`]. The database refuses a larger one (migration 000029).
pub const EVENT_PAYLOAD_BYTES: usize = BROKER_PAYLOAD_BYTES - 64 * 1024;

/// The longest session, agent or conversation identifier, in characters.
pub const IDENTIFIER_CHARS: usize = 128;

/// The longest context, setting or credential key, in characters.
pub const KEY_CHARS: usize = 256;

/// The longest human-readable name, in characters.
pub const NAME_CHARS: usize = 200;

/// The longest free text (a chat message, a summary), in characters.
pub const TEXT_CHARS: usize = 256 * 1024;

/// The longest question to agents, and the longest answer of one, in characters: 64 KiB at most.
pub const RESPONSE_CHARS: usize = 16 * 1024;

/// The longest texts and claims that answer one task together, in characters; each agent that is asked has an equal part of them.
pub const TASK_CHARS: usize = 1024 * 1024;

/// The longest sources and recalled nodes that the answers to one task rest on together, in characters, in equal parts as well. A recalled
/// node counts as the 36 characters of its id.
pub const TASK_EVIDENCE_CHARS: usize = 2 * TASK_CHARS;

/// The largest structured claim of an answer, in bytes of its JSON.
pub const CLAIM_BYTES: usize = 16 * 1024;

/// The longest preceding text that is embedded together with a memory, in characters.
pub const PRECEDING_CHARS: usize = 4_096;

/// The longest service name in a subject, in characters.
pub const SERVICE_CHARS: usize = 64;

/// The longest name of a scheduled job, in characters.
pub const JOB_CHARS: usize = 48;

/// The longest reply subject of an outcome, in bytes. The NATS server closes the connection of a client that publishes
/// on a subject that exceeds its `max_control_line`, 4096 bytes by default.
pub const REPLY_SUBJECT_BYTES: usize = 256;

/// How far the version of a record may be ahead of the time at which its request is decoded, both in milliseconds since
/// 1970.
pub const VERSION_AHEAD_MS: i64 = 24 * 60 * 60 * 1_000;

/// The shortest deadline of a query, in milliseconds. It limits the time in the database.
pub const DEADLINE_MS_MIN: u64 = 10;
/// The longest deadline of a query, in milliseconds.
pub const DEADLINE_MS_MAX: u64 = 10_000;
/// The deadline of a query without the header [`DEADLINE_MS`](crate::header::DEADLINE_MS), in milliseconds.
pub const DEADLINE_MS_DEFAULT: u64 = 2_000;

/// The longest reason in a dead letter or an outcome, in characters. A longer one is truncated.
pub const REASON_CHARS: usize = 500;
