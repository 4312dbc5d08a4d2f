//! The key store's table, as `migrations` creates it.

diesel::table! {
    data_keys (user_id, version) {
        user_id -> Integer,
        version -> Integer,
        kek -> Text,
        wrapped -> Binary,
        created_at -> Timestamptz,
        wrapped_at -> Timestamptz,
    }
}
