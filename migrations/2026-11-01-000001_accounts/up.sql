-- The account mirror: users and what belongs to them (the reference document's "Core User Management").
-- Every table that holds a user's data carries user_id, in its keys too: a key without it would let one
-- user's row collide with another's.
SET LOCAL lock_timeout = '100ms';

CREATE TYPE user_role AS ENUM ('user', 'admin', 'service');
CREATE TYPE user_status AS ENUM ('pending', 'active', 'suspended', 'closed');
CREATE TYPE device_type AS ENUM ('desktop', 'laptop', 'phone', 'tablet', 'browser', 'other');
CREATE TYPE security_level AS ENUM ('basic', 'trusted', 'verified');
CREATE TYPE second_factor_method AS ENUM ('totp', 'sms', 'email');

-- Names and addresses are not unique here: the platform guards that, and a mirror that sees two renames in
-- another order must not refuse one of them.
CREATE TABLE users (
    id integer PRIMARY KEY CHECK (id >= 0),
    username varchar(200) NOT NULL,
    email varchar(320) NOT NULL,
    password_hash text,
    role user_role NOT NULL DEFAULT 'user',
    status user_status NOT NULL DEFAULT 'active',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- User 0 is the platform itself: the owner of settings that are nobody's.
INSERT INTO users (id, username, email, role, status, created_at, updated_at)
VALUES (0, 'platform', 'platform@invalid', 'service', 'active', 'epoch', 'epoch');

CREATE TABLE user_profiles (
    id uuid PRIMARY KEY,
    user_id integer NOT NULL UNIQUE REFERENCES users (id),
    first_name varchar(200),
    last_name varchar(200),
    timezone varchar(64),
    preferences jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(preferences) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- A removed row stays as a tombstone without its value, so that an older put arriving late changes nothing.
CREATE TABLE system_settings (
    id uuid PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users (id),
    setting_key varchar(256) NOT NULL,
    setting_value jsonb,
    is_global boolean GENERATED ALWAYS AS (user_id = 0) STORED,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    UNIQUE (user_id, setting_key),
    CHECK ((setting_value IS NULL) = (removed_at IS NOT NULL))
);

CREATE TABLE registered_devices (
    id uuid NOT NULL,
    user_id integer NOT NULL REFERENCES users (id),
    device_name varchar(200),
    device_type device_type,
    security_level security_level,
    last_seen_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    PRIMARY KEY (user_id, id),
    CHECK (removed_at IS NOT NULL OR (device_name IS NOT NULL AND device_type IS NOT NULL AND security_level IS NOT NULL))
);

CREATE TABLE user_two_factor_auth (
    id uuid PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users (id),
    method second_factor_method NOT NULL,
    secret_key text,
    backup_codes jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(backup_codes) = 'array'),
    is_enabled boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    UNIQUE (user_id, method),
    CHECK ((secret_key IS NULL) = (removed_at IS NOT NULL))
);

CREATE TABLE passkey_credentials (
    id uuid PRIMARY KEY,
    user_id integer NOT NULL REFERENCES users (id),
    credential_id varchar(1400) NOT NULL,
    public_key text,
    sign_count bigint NOT NULL DEFAULT 0 CHECK (sign_count BETWEEN 0 AND 4294967295),
    passkey_name varchar(200),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    removed_at timestamptz,
    UNIQUE (user_id, credential_id),
    CHECK ((public_key IS NULL) = (removed_at IS NOT NULL))
);
