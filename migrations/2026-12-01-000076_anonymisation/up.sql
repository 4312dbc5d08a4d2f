-- Anonymisation (docs/adr/0065): an erasure before which what the rows count goes into sums over many persons.
SET LOCAL lock_timeout = '100ms';

-- Sums over the persons who were anonymised. No row, id, text or time of a person is in it: labels are values of enumerations.
CREATE TABLE anonymous_statistics (
    statistic varchar(64) NOT NULL,
    month date NOT NULL CHECK (extract(day FROM month) = 1),
    label varchar(64) NOT NULL,
    -- How many persons the amount is of. What is of few is not shown.
    persons bigint NOT NULL CHECK (persons > 0),
    amount numeric NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (statistic, month, label)
);
-- Without a policy: for operators alone, who bypass them.
ALTER TABLE anonymous_statistics ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE anonymous_statistics OWNER TO memfleet_owner;

-- A person is erased or anonymised, and not both at once. An earlier program looks for privacy_requests_one_erasure, which therefore stays.
CREATE UNIQUE INDEX privacy_requests_one_removal ON privacy_requests (user_id)
    WHERE request_type IN ('erase', 'anonymise') AND request_status IN ('pending', 'held', 'in_progress');

-- Files the anonymisation of a user, as `memfleet privacy anonymise` does, which checks more. For operators.
CREATE FUNCTION anonymize_user_data(of_user integer) RETURNS uuid LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    request CONSTANT uuid := public.uuid7();
BEGIN
    IF of_user = 0 OR NOT EXISTS (SELECT FROM public.users u WHERE u.id = of_user) THEN
        RAISE no_data_found USING MESSAGE = format('there is no user %s who can be anonymised', of_user);
    END IF;
    INSERT INTO public.privacy_requests (id, user_id, request_type, service, reason)
    VALUES (request, of_user, 'anonymise', 'operator', 'anonymize_user_data');
    RETURN request;
END $$;
REVOKE EXECUTE ON FUNCTION anonymize_user_data FROM PUBLIC;
ALTER FUNCTION anonymize_user_data OWNER TO memfleet_owner;
