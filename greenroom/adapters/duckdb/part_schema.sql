-- A sealed part: what some log files held, clustered by session. Written once by the sealing process, then only read.

CREATE TABLE meta (name VARCHAR NOT NULL, value VARCHAR NOT NULL);

-- The newest owner of each session in the part.
CREATE TABLE grants (
    session_key BIGINT NOT NULL,
    session_id VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    owner VARCHAR NOT NULL,
    granted_at_us BIGINT NOT NULL
);

-- One row per session: which seqs are here, and the digests before and after them.
CREATE TABLE spans (
    session_key BIGINT NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    previous BLOB NOT NULL,
    digest BLOB NOT NULL,
    pruned BIGINT NOT NULL
);

-- Some consecutive batches of a session, compressed. Sorted by session_key and first_seq, so that DuckDB's zone maps
-- leave a cursor's read one or two row groups to look at.
CREATE TABLE chunks (
    session_key BIGINT NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    types BIGINT NOT NULL,
    first_batch BIGINT NOT NULL, -- in the order of commits, for the feed
    last_batch BIGINT NOT NULL,
    previous BLOB NOT NULL, -- the digest before it: what follows a damaged chunk can still be proven
    -- Compressed already. DuckDB's own compression would have a read load all that lies in the same 2,048 rows, 29 MB:
    -- at ten million events it took 3.1 ms (p99 6.0) instead of 0.5 (0.8), and made the file no smaller.
    chunk BLOB NOT NULL USING COMPRESSION uncompressed
);
