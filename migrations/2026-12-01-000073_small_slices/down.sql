SET LOCAL lock_timeout = '100ms';

CREATE OR REPLACE FUNCTION sec.next_slice(OUT after_user integer, OUT last_user integer, OUT is_next_pass boolean, OUT due integer[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    size integer;
    most integer;
    slice integer[];
BEGIN
    SELECT s.after_user, s.slice_users, false INTO after_user, size, is_next_pass FROM public.retention_state s;
    most := CASE WHEN size < 20 THEN 1 ELSE 5 END;
    FOR looked_at IN 1 .. most LOOP
        slice := ARRAY(SELECT u.id FROM public.users u WHERE u.id > next_slice.after_user ORDER BY u.id LIMIT size);
        last_user := slice[cardinality(slice)];
        due := ARRAY(SELECT d FROM sec.due_users(slice) AS d);
        EXIT WHEN due <> '{}' OR looked_at = most OR last_user IS NULL AND is_next_pass;
        is_next_pass := is_next_pass OR last_user IS NULL;
        after_user := coalesce(last_user, -1);
        size := 200;
    END LOOP;
END $$;

SELECT sec.hide_plans();
