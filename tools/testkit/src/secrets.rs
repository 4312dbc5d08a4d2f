//! The keys, passwords and secret contents of tests. None of them may appear in a log.

/// The content of every secret in tests. It may be in no log, no event and no table.
pub const CANARY: &str = "canary-5c1e9d07";

/// The key that seals grants, in every test's database.
pub const GRANT_KEY: &str = "test 6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b";
/// The key that signs tokens in every test's database.
pub const TOKEN_KEY: &str = "test private 7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a\n";
/// The key-encryption key of every test.
pub const KEK_RING: &str = "kek.1 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b\n";
/// The payload keys of the services of tests.
pub const PAYLOAD_RING: &str = "test.1 5041594c4f41445041594c4f41445041594c4f41445041594c4f41445041594c\n\
    simple-chat.1 5041594c4f41445041594c4f41445041594c4f41445041594c4f41445041594d\n";
/// The key that signs seals of the audit trail in every test.
pub(crate) const SEAL_KEY: &str =
    "test private 5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e\n";
/// The password of the workers' roles.
pub(crate) const WORKER_PASSWORD: &str = "worker-9b41c7";
