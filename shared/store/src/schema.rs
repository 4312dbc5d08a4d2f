//! The tables of the migrated database that Diesel's DSL reads or writes. Written and checked by `tests/schema_file.rs`.

#![allow(missing_docs, reason = "the migrations say what everything is")]

diesel::table! {
    use diesel::sql_types::*;
    sec.services (service) {
        service -> Text,
        scopes -> Array<Text>,
        per_second -> Nullable<Integer>,
        scope_per_second -> Nullable<Integer>,
        user_per_second -> Nullable<Integer>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        disabled_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    sec.token_keys (key_id) {
        key_id -> Text,
        public_key -> Binary,
        created_at -> Timestamptz,
        retired_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    cross_service_auth (token_id) {
        token_id -> Uuid,
        service -> Text,
        user_id -> Integer,
        session_id -> Nullable<Text>,
        scopes -> Array<Text>,
        key_id -> Text,
        issued_at -> Timestamptz,
        expires_at -> Timestamptz,
        grants_expire_at -> Timestamptz,
        last_used_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    encrypted_fields (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        table_name -> Text,
        column_name -> Text,
        row_id -> Uuid,
        ciphertext -> Binary,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.seals (number) {
        number -> BigInt,
        previous_hash -> Binary,
        through_transaction -> BigInt,
        through_id -> Uuid,
        leaves -> Binary,
        root -> Binary,
        sealed_at -> Timestamptz,
        key_name -> Text,
        signature -> Binary,
        format -> SmallInt,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.subjects (user_id) {
        user_id -> Integer,
        token -> Uuid,
        created_at -> Timestamptz,
        digest_key -> Binary,
        transaction_id -> BigInt,
    }
}
