-- What protects the database, a line for each thing. Read by catalog.rs.
--
-- Roles count if a worker has them, or if they own something here. The owner that migrates has a name of its own
-- everywhere. Partitions by month count as one, since their number grows. The C functions of an extension do not count.
-- What the two names in braces stand for, each database says (catalog.rs).
WITH kept AS (
    SELECT r.oid, r.rolname FROM pg_roles r WHERE r.rolname IN ({roles})
), named AS (
    SELECT r.oid, CASE WHEN k.oid IS NULL AND (r.rolsuper OR r.oid = (SELECT d.datdba FROM pg_database d
        WHERE d.datname = current_database())) THEN 'an administrator' ELSE r.rolname::text END AS name
    FROM pg_roles r LEFT JOIN kept k ON k.oid = r.oid UNION ALL SELECT 0, 'PUBLIC'
-- Not the two of PostgreSQL itself, which are compared apart. Others of its own, as pg_toast, may hold things too.
), space AS (
    SELECT n.oid, n.nspname, n.nspacl, n.nspowner FROM pg_namespace n
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
), of_extension AS (
    SELECT d.classid, d.objid FROM pg_depend d
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND d.refobjid >= 16384
), relation AS (
    SELECT c.*, s.nspname, format('%I.%I', s.nspname, CASE WHEN c.relispartition
            THEN regexp_replace(c.relname, '_\d{4}_\d{2}$', '_month') ELSE c.relname END) AS name
    FROM pg_class c JOIN space s ON s.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND s.nspname !~ '^pg_(toast_)?temp_'
        AND NOT EXISTS (SELECT FROM of_extension e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid)
), routine AS (
    SELECT p.*, s.nspname, l.lanname, format('%I.%I(%s)', s.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS name
    FROM pg_proc p JOIN space s ON s.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
    WHERE NOT EXISTS (SELECT FROM of_extension e
        WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND l.lanname = 'c' AND NOT p.prosecdef)
-- A function of PostgreSQL that was changed or added since the cluster was created, at whose end its template was made. A
-- changed template moves this mark by little: the first migrations take it further.
), changed_function AS (
    SELECT p.*, l.lanname, format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) AS name
    FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
    WHERE p.pronamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) AND p.xmin::text::bigint >= least(1000,
        (SELECT d.xmin::text::bigint FROM pg_database d WHERE d.datname = 'template0'))
-- Types, aggregates, access methods, languages and conversions of PostgreSQL by the same mark, and casts. The others are in server.rs.
), thing AS (
    SELECT 'type ' || format_type(t.oid, NULL) AS name, 'pg_type'::regclass AS class, t.oid, t.xmin FROM pg_type t
    WHERE t.typnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
    UNION ALL SELECT format('cast from %s to %s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)),
        'pg_cast'::regclass, c.oid, c.xmin FROM pg_cast c
    UNION ALL SELECT 'aggregate ' || a.aggfnoid, 'pg_proc'::regclass, a.aggfnoid, a.xmin FROM pg_aggregate a
    UNION ALL SELECT 'access method ' || m.amname, 'pg_am'::regclass, m.oid, m.xmin FROM pg_am m
    UNION ALL SELECT 'language ' || l.lanname, 'pg_language'::regclass, l.oid, l.xmin FROM pg_language l
    UNION ALL SELECT 'conversion ' || c.conname, 'pg_conversion'::regclass, c.oid, c.xmin FROM pg_conversion c
-- Expressions as they are stored, which is what PostgreSQL evaluates. Their text does not tell which function an implicit cast calls, that an
-- operator calls another function than its own, or that a column is read under the name of another one.
), stored AS (
    SELECT 'pg_attrdef'::regclass AS class, d.oid, d.adbin::text AS tree FROM pg_attrdef d
    UNION ALL SELECT 'pg_class'::regclass, i.indexrelid, concat_ws('|', i.indexprs, i.indpred) FROM pg_index i
    UNION ALL SELECT 'pg_class'::regclass, w.ev_class, concat_ws('|', w.ev_qual, w.ev_action) FROM pg_rewrite w
        JOIN relation r ON r.oid = w.ev_class AND r.relkind IN ('v', 'm')
    UNION ALL SELECT 'pg_constraint'::regclass, c.oid, c.conbin::text FROM pg_constraint c
    UNION ALL SELECT 'pg_policy'::regclass, p.oid, concat_ws('|', p.polqual, p.polwithcheck) FROM pg_policy p
    UNION ALL SELECT 'pg_proc'::regclass, p.oid, p.proargdefaults::text FROM routine p
    UNION ALL SELECT 'pg_trigger'::regclass, t.oid, t.tgqual::text FROM pg_trigger t
-- What of them is the same in every database and version: not fields with their default value, which versions add, nor places in the
-- statement, how a cast was written and aliases, nor the number of a column, which partitions have others of, if the named one is read.
), short AS MATERIALIZED (
    SELECT t.tree, regexp_replace(regexp_replace(regexp_replace(regexp_replace(t.tree,
        ' :\w+ (?:<>|false|0|\(b\))(?=[ )}])', '', 'g'),
        ' :(?:(?:\w*(?:location|format)|stmt_len|list_start|list_end) -?\d+|(?:alias|eref) \{ALIAS [^{}]*\})', '', 'g'),
        ' :varattno (\d+)([^{}]*) :varattnosyn \1(?!\d)', '\2', 'g'),
        -- Values of enumerations and names of objects are ids. The text has them.
        '(:consttype (?:\d{5,}|24|220[2-6]|3734|4089|4096|4191)\M[^{}\[]*):constvalue \d+ \[[^\]]*\]', '\1', 'g') AS form
    FROM (SELECT DISTINCT s.tree FROM stored s WHERE s.tree <> '') AS t
-- What PostgreSQL did not make has another id in each database.
), shape AS MATERIALIZED (
    SELECT s.class, s.oid, 'stored as ' || md5(concat_ws(' ', regexp_replace(h.form, '(:\w*(?:id|no|func|type)) \d{5,}', '\1', 'g'), (
        SELECT string_agg(CASE WHEN f.found[1] ~ 'func(id)?$|fnoid$' THEN f.found[2]::oid::regprocedure::text
            WHEN f.found[1] ~ 'opno$' THEN f.found[2]::oid::regoperator::text
            WHEN f.found[1] ~ 'type(id)?$' THEN f.found[2]::oid::regtype::text
            WHEN f.found[1] ~ 'collid$' THEN f.found[2]::oid::regcollation::text
            ELSE f.found[2]::oid::regclass::text END, ' ' ORDER BY f.place)
        FROM regexp_matches(h.form, ':(\w*(?:id|no|func|type)) (\d{5,})', 'g') WITH ORDINALITY AS f (found, place)))) AS hash
    FROM stored s JOIN short h ON h.tree = s.tree
-- What PostgreSQL itself grants of what is its own.
), initial AS (
    SELECT i.classoid, i.objoid, i.objsubid, b.grantee, b.privilege_type
    FROM pg_init_privs i, aclexplode(i.initprivs) AS b
), granted AS (
    SELECT 'schema ' || s.nspname AS what, s.nspowner AS owner, a.* FROM space s, aclexplode(s.nspacl) AS a
    UNION ALL SELECT 'relation ' || r.name, r.relowner, a.* FROM relation r, aclexplode(r.relacl) AS a
    UNION ALL SELECT format('column %s.%I', r.name, t.attname), r.relowner, a.* FROM relation r
        JOIN pg_attribute t ON t.attrelid = r.oid AND NOT t.attisdropped, aclexplode(t.attacl) AS a
    UNION ALL SELECT format('default privilege in %s', d.defaclnamespace), d.defaclrole, a.*
        FROM pg_default_acl d, aclexplode(d.defaclacl) AS a
    UNION ALL SELECT 'parameter ' || m.parname, 10, a.* FROM pg_parameter_acl m, aclexplode(m.paracl) AS a
    UNION ALL SELECT 'language ' || l.lanname, l.lanowner, a.* FROM pg_language l, aclexplode(l.lanacl) AS a
    UNION ALL SELECT 'foreign server ' || f.srvname, f.srvowner, a.* FROM pg_foreign_server f, aclexplode(f.srvacl) AS a
    UNION ALL SELECT 'this database', d.datdba, a.* FROM pg_database d, aclexplode(d.datacl) AS a
        WHERE d.datname = current_database() AND a.privilege_type <> 'CONNECT'
    UNION ALL SELECT format('function of PostgreSQL %s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), p.proowner, a.*
        FROM pg_proc p, aclexplode(p.proacl) AS a WHERE p.pronamespace = 'pg_catalog'::regnamespace
        AND ('pg_proc'::regclass, p.oid, 0, a.grantee, a.privilege_type) NOT IN (SELECT * FROM initial)
    UNION ALL SELECT 'relation of PostgreSQL ' || c.relname, c.relowner, a.*
        FROM pg_class c, aclexplode(c.relacl) AS a
        WHERE (c.relnamespace = 'pg_catalog'::regnamespace
            OR c.relnamespace = 'information_schema'::regnamespace AND (a.grantee, a.privilege_type) <> (0, 'SELECT'))
        AND ('pg_class'::regclass, c.oid, 0, a.grantee, a.privilege_type) NOT IN (SELECT * FROM initial)
    UNION ALL SELECT format('column of PostgreSQL %s.%I', c.relname, t.attname), c.relowner, a.*
        FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid, aclexplode(t.attacl) AS a
        WHERE c.relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        AND ('pg_class'::regclass, c.oid, t.attnum, a.grantee, a.privilege_type) NOT IN (SELECT * FROM initial)
)
SELECT line FROM (SELECT DISTINCT regexp_replace(line, '_\d{4}_\d{2}(?!\d)', '_month', 'g') AS line FROM (
    SELECT concat_ws(' ', 'role', r.rolname, CASE WHEN r.rolcanlogin THEN 'login' END,
        CASE WHEN r.rolsuper THEN 'superuser' END, CASE WHEN r.rolbypassrls THEN 'bypassrls' END,
        CASE WHEN r.rolinherit THEN 'inherit' END, CASE WHEN r.rolcreaterole THEN 'createrole' END,
        CASE WHEN r.rolcreatedb THEN 'createdb' END, CASE WHEN r.rolreplication THEN 'replication' END) AS line
    FROM pg_roles r JOIN kept k ON k.oid = r.oid
    UNION ALL SELECT format('role %s is a member of %s', k.rolname, g.rolname)
    FROM pg_auth_members m JOIN kept k ON k.oid = m.member JOIN pg_roles g ON g.oid = m.roleid
    UNION ALL SELECT format('role %s has the member %s', k.rolname, g.rolname)
    FROM pg_auth_members m JOIN kept k ON k.oid = m.roleid JOIN pg_roles g ON g.oid = m.member AND NOT g.rolsuper

    UNION ALL SELECT format('setting of the role %s: %s', k.rolname, split_part(one, '=', 1))
    FROM pg_db_role_setting s JOIN kept k ON k.oid = s.setrole, unnest(s.setconfig) AS one
    WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
    UNION ALL SELECT format('setting %s of %s', split_part(one, '=', 1), coalesce(r.rolname, 'the database'))
    FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(s.setconfig) AS one
    WHERE s.setdatabase IN (0, (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()))
        AND split_part(one, '=', 1) IN ('search_path', 'session_replication_role', 'row_security')
    UNION ALL SELECT format('setting %s of the server: %s', s.name, s.reset_val) FROM pg_settings s
    WHERE s.name IN ('search_path', 'session_replication_role', 'row_security', 'allow_system_table_mods')
        AND s.reset_val <> s.boot_val AND s.source NOT IN ('client', 'database', 'user', 'database user')

    UNION ALL SELECT concat_ws(' ', 'relation', r.name, r.relkind::text, 'of', o.name,
        CASE WHEN r.relrowsecurity THEN 'row security' END, CASE WHEN r.relforcerowsecurity THEN 'forced' END,
        CASE WHEN r.relpersistence <> 'p' THEN 'not permanent' END,
        array_to_string(array_remove(r.reloptions, 'fillfactor=70'), ', '))
    FROM relation r JOIN named o ON o.oid = r.relowner
    UNION ALL SELECT concat_ws(' ', 'column', format('%s.%I', r.name, t.attname), format_type(t.atttypid, t.atttypmod),
        CASE WHEN t.attnotnull THEN 'not null' END, 'default ' || pg_get_expr(d.adbin, d.adrelid),
        s.hash,
        'identity ' || nullif(t.attidentity::text, ''), 'generated ' || nullif(t.attgenerated::text, ''),
        'collate ' || (SELECT c.collname FROM pg_collation c JOIN pg_type y ON y.oid = t.atttypid
            WHERE c.oid = t.attcollation AND c.oid <> y.typcollation))
    FROM relation r JOIN pg_attribute t ON t.attrelid = r.oid AND t.attnum > 0 AND NOT t.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = t.attnum
    LEFT JOIN shape s ON s.class = 'pg_attrdef'::regclass AND s.oid = d.oid WHERE r.relkind IN ('r', 'p', 'f')
    -- PostgreSQL looks at these flags first: what they deny has no effect, though it is in the catalogs. Where all is in order
    -- there is no such line. The first three stay set when the last one of what they tell of is dropped.
    UNION ALL SELECT format('flag of %s denies its %s', r.name, f.what)
    FROM relation r CROSS JOIN LATERAL (VALUES
        ('triggers', NOT r.relhastriggers AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = r.oid)),
        ('rules', NOT r.relhasrules AND EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = r.oid)),
        ('indexes', NOT r.relhasindex AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = r.oid)),
        ('checks', r.relchecks <> (SELECT count(*) FROM pg_constraint c WHERE c.conrelid = r.oid AND c.contype = 'c'))
    ) AS f (what, is_denied) WHERE f.is_denied
    UNION ALL SELECT format('flag of the column %s.%I denies its default', r.name, t.attname)
    FROM relation r JOIN pg_attribute t ON t.attrelid = r.oid AND t.attnum > 0 AND NOT t.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = t.attnum WHERE t.atthasdef <> (d.oid IS NOT NULL)
    UNION ALL SELECT format('flag of the index of the constraint %I on %s denies what it enforces', c.conname, r.name)
    FROM pg_constraint c JOIN relation r ON r.oid = c.conrelid JOIN pg_index i ON i.indexrelid = c.conindid
    WHERE c.contype IN ('p', 'u') AND NOT (i.indisunique AND i.indisvalid AND i.indisready AND i.indislive AND i.indpred IS NULL)
    -- An index that has other values than its table hides from whoever verifies the trail what was changed. One that is not valid is not read.
    UNION ALL SELECT concat_ws(' ', CASE WHEN i.indisunique THEN 'unique' END, format('index %I on %s:', c.relname, r.name),
        regexp_replace(pg_get_indexdef(c.oid), '^.* USING ', ''),
        CASE WHEN NOT (i.indisvalid AND i.indisready AND i.indislive) THEN 'denied by a flag' END, s.hash)
    FROM pg_index i JOIN relation r ON r.oid = i.indrelid JOIN pg_class c ON c.oid = i.indexrelid
    LEFT JOIN shape s ON s.class = 'pg_class'::regclass AND s.oid = c.oid
    WHERE (i.indisunique OR i.indisvalid AND (r.nspname = 'audit' OR r.name LIKE 'public.blackboard\_events%'))
        AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x'))
    -- A foreign key is enforced by four triggers of PostgreSQL's own. Those of partitioned tables are others.
    UNION ALL SELECT format('trigger %s of the constraint %I on %s is another one', e.function, c.conname, r.name)
    FROM pg_constraint c JOIN relation r ON r.oid = c.conrelid JOIN pg_class f ON f.oid = c.confrelid
    CROSS JOIN LATERAL (SELECT '{"a": "noaction", "r": "restrict", "c": "cascade", "n": "setnull", "d": "setdefault"}'::jsonb AS names) AS a
    CROSS JOIN LATERAL (VALUES (c.conrelid, 'RI_FKey_check_ins', 5), (c.conrelid, 'RI_FKey_check_upd', 17),
        (c.confrelid, format('RI_FKey_%s_del', a.names ->> c.confdeltype::text), 9),
        (c.confrelid, format('RI_FKey_%s_upd', a.names ->> c.confupdtype::text), 17)) AS e (relation, function, type)
    WHERE c.contype = 'f' AND r.relkind = 'r' AND f.relkind = 'r' AND NOT r.relispartition AND NOT f.relispartition
        AND NOT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid AND p.pronamespace = 'pg_catalog'::regnamespace
            WHERE t.tgconstraint = c.oid AND t.tgrelid = e.relation AND p.proname = e.function AND t.tgtype = e.type AND t.tgqual IS NULL)
    UNION ALL SELECT concat_ws(' ', format('sequence %s: from %s to %s by %s,', r.name, q.seqmin, q.seqmax, q.seqincrement),
        q.seqcache, 'in advance', CASE WHEN q.seqcycle THEN 'and again from the beginning' END)
    FROM pg_sequence q JOIN relation r ON r.oid = q.seqrelid
    UNION ALL SELECT concat_ws(' ', 'type', format('%I.%I', s.nspname, t.typname), t.typtype::text, t.typinput, t.typoutput,
        t.typreceive, t.typsend)
    FROM pg_type t JOIN space s ON s.oid = t.typnamespace WHERE t.typrelid = 0 AND t.typcategory <> 'A'
        AND NOT EXISTS (SELECT FROM of_extension e WHERE e.classid = 'pg_type'::regclass AND e.objid = t.oid)
    -- A key may not be taken away, nor what enforces it. PostgreSQL 18 has constraints of NOT NULL, others have none.
    -- A partition that was added later has checked its rows.
    UNION ALL SELECT concat_ws(' ', format('constraint %I on %s:', c.conname, r.name),
        CASE WHEN r.relispartition THEN regexp_replace(pg_get_constraintdef(c.oid), ' NOT VALID$', '') ELSE pg_get_constraintdef(c.oid) END,
        CASE WHEN c.contype = 'f' THEN (SELECT format('by %s triggers', count(*)) FROM pg_trigger t WHERE t.tgconstraint = c.oid) END, s.hash)
    FROM pg_constraint c JOIN relation r ON r.oid = c.conrelid
    LEFT JOIN shape s ON s.class = 'pg_constraint'::regclass AND s.oid = c.oid WHERE c.contype <> 'n'
    UNION ALL {own_lines}
    UNION ALL SELECT format('partition %s without a policy', r.name)
    FROM relation r JOIN pg_inherits i ON i.inhrelid = r.oid JOIN pg_class parent ON parent.oid = i.inhparent
    WHERE parent.relrowsecurity AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = r.oid)

    UNION ALL SELECT concat_ws(' ', 'function', p.name, 'of', o.name, CASE WHEN p.prosecdef THEN 'definer' END,
        p.provolatile::text, array_to_string(p.proconfig, ', '),
        md5(CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) ELSE p.prosrc END), 'defaults ' || s.hash)
    FROM routine p JOIN named o ON o.oid = p.proowner LEFT JOIN shape s ON s.class = 'pg_proc'::regclass AND s.oid = p.oid
    UNION ALL SELECT format('function %s may be called by %s', p.name, g.name)
    FROM routine p CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
    JOIN named g ON g.oid = a.grantee WHERE a.grantee <> p.proowner
    -- Which counters of statistics there are, and how some functions are called, depends on the version.
    UNION ALL SELECT concat_ws(' ', 'changed function of PostgreSQL',
        CASE WHEN p.lanname = 'internal' AND p.proname ~ '^pg_stat_get_' AND p.prosrc = p.proname THEN 'pg_stat_get_*'
            WHEN p.lanname = 'internal' AND p.prosrc ~ '^pg_logical_emit_message_(text|bytea)$' THEN p.proname
            ELSE concat_ws(' ', p.name, p.lanname, p.prosrc) END, md5(p.prosqlbody::text),
        CASE WHEN p.prosecdef THEN 'definer' END, array_to_string(p.proconfig, ', '))
    FROM changed_function p
    UNION ALL SELECT 'changed ' || t.name FROM thing t WHERE t.xmin::text::bigint >= least(1000,
            (SELECT d.xmin::text::bigint FROM pg_database d WHERE d.datname = 'template0'))
        AND NOT EXISTS (SELECT FROM of_extension e WHERE e.classid = t.class AND e.objid = t.oid)
    UNION ALL SELECT format('operator %s calls %s', o.oid::regoperator, o.oprcode) FROM pg_operator o JOIN space s ON s.oid = o.oprnamespace
    WHERE NOT EXISTS (SELECT FROM of_extension e WHERE e.classid = 'pg_operator'::regclass AND e.objid = o.oid)
    UNION ALL SELECT concat_ws(' ', g.what, 'grants', g.privilege_type, 'to', n.name,
        CASE WHEN g.is_grantable THEN 'with grant option' END)
    FROM granted g JOIN named n ON n.oid = g.grantee WHERE g.grantee <> g.owner

    UNION ALL SELECT concat_ws(' ', 'policy', p.polname, 'on', r.name, p.polcmd::text,
        CASE WHEN p.polpermissive THEN 'permissive' ELSE 'restrictive' END, p.polroles::text,
        pg_get_expr(p.polqual, p.polrelid), '|', pg_get_expr(p.polwithcheck, p.polrelid), s.hash)
    FROM pg_policy p JOIN relation r ON r.oid = p.polrelid LEFT JOIN shape s ON s.class = 'pg_policy'::regclass AND s.oid = p.oid
    -- Only foreign keys make triggers that count as PostgreSQL's own.
    UNION ALL SELECT concat_ws(' ', 'trigger', t.tgname, 'on', r.name, t.tgenabled::text,
        CASE WHEN t.tgdeferrable AND t.tgconstraint = 0 THEN 'deferrable' END,
        regexp_replace(pg_get_triggerdef(t.oid), '^CREATE TRIGGER \S+ ', ''), s.hash)
    FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid LEFT JOIN shape s ON s.class = 'pg_trigger'::regclass AND s.oid = t.oid
    WHERE t.tgenabled <> 'O' OR NOT (t.tgisinternal AND t.tgfoid < 16384 AND EXISTS (SELECT FROM pg_constraint c
        WHERE c.oid = t.tgconstraint AND c.contype = 'f'))
    UNION ALL SELECT concat_ws(' ', 'rule', w.rulename, 'on', r.name) FROM pg_rewrite w JOIN relation r ON r.oid = w.ev_class
    WHERE NOT (w.rulename = '_RETURN' AND w.ev_type = '1' AND r.relkind IN ('v', 'm'))
    UNION ALL SELECT concat_ws(' ', 'view', r.name, md5(pg_get_viewdef(r.oid)), s.hash)
    FROM relation r LEFT JOIN shape s ON s.class = 'pg_class'::regclass AND s.oid = r.oid WHERE r.relkind IN ('v', 'm')
    UNION ALL SELECT 'event trigger ' || e.evtname FROM pg_event_trigger e
    -- It writes without triggers.
    UNION ALL SELECT 'subscription ' || b.subname FROM pg_subscription b
    WHERE b.subdbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    UNION ALL SELECT 'foreign server ' || f.srvname FROM pg_foreign_server f
    UNION ALL SELECT concat_ws(' ', 'language', l.lanname, CASE WHEN l.lanpltrusted THEN 'trusted' END,
        CASE WHEN l.lanplcallfoid >= 16384 THEN 'with a handler that was added' END) FROM pg_language l
) AS all_lines) AS once ORDER BY line COLLATE "C"
