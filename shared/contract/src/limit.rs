//! Bounds of what may travel. Every one is enforced where a message is decoded.

/// The largest request body, in bytes. A larger one is refused as malformed.
pub const BODY_BYTES: usize = 1024 * 1024;

/// The deepest nesting of arrays and objects in a free-form JSON value. PostgreSQL's own parser runs out of
/// stack somewhat below ten thousand levels.
pub const JSON_DEPTH: usize = 64;

/// The deepest nesting of a whole body, which holds such values a few levels down. An event's payload is a body.
pub const BODY_DEPTH: usize = JSON_DEPTH + 8;

/// The longest session, agent or conversation identifier, in characters.
pub const IDENTIFIER_CHARS: usize = 128;

/// The longest context, setting or credential key, in characters.
pub const KEY_CHARS: usize = 256;

/// The longest human-readable name, in characters.
pub const NAME_CHARS: usize = 200;

/// The longest free text (a chat message, a summary), in characters.
pub const TEXT_CHARS: usize = 256 * 1024;

/// The longest service name in a subject, in characters.
pub const SERVICE_CHARS: usize = 64;

/// The longest reason carried by a dead letter or an outcome, in characters; the rest is cut.
pub const REASON_CHARS: usize = 500;
