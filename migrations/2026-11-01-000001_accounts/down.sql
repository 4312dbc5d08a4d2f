SET LOCAL lock_timeout = '100ms';

DROP TABLE passkey_credentials, user_two_factor_auth, registered_devices, system_settings, user_profiles, users;
DROP TYPE second_factor_method, security_level, device_type, user_status, user_role;
