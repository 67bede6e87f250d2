-- The tables of one event store file. No PRIMARY KEY and no UNIQUE anywhere: checkpoints would rewrite their indexes
-- (reference/field.md section 4); uniqueness is held by the one writer and checked when a log is loaded.

-- What cannot be derived: layout version, settings of the runtime.
CREATE TABLE IF NOT EXISTS meta (name VARCHAR NOT NULL, value VARCHAR NOT NULL);

-- Every time that a session got an owner. Only the newest epoch may write.
CREATE TABLE IF NOT EXISTS epochs (
    session_key BIGINT NOT NULL,
    session_id VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    owner VARCHAR NOT NULL,
    granted_at_us BIGINT NOT NULL
);

-- The log. One row is one batch of consecutive events of one session; `batch` is a packed header, then the packed
-- events. Only what statements look for has a column: each one costs a commit 45 microseconds of CPU (1.25 ms with ten
-- columns, 0.85 with four).
CREATE TABLE IF NOT EXISTS batches (
    batch_id BIGINT NOT NULL,
    session_key BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    batch BLOB NOT NULL
);

-- Tools that travel by pickle: part of a session, never of its events.
CREATE TABLE IF NOT EXISTS session_tools (session_id VARCHAR NOT NULL, tools BLOB NOT NULL);

-- Projections of the log up to watermark.batch_id; rebuilt from the batches past it.
CREATE TABLE IF NOT EXISTS watermark (batch_id BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
    session_id VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    agent_id VARCHAR NOT NULL,
    tags VARCHAR[] NOT NULL,
    created_at_us BIGINT NOT NULL,
    idempotency_key VARCHAR,
    record VARCHAR NOT NULL
);
CREATE TABLE IF NOT EXISTS runs (
    run_id VARCHAR NOT NULL,
    session_id VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    queued_seq BIGINT NOT NULL,
    created_at_us BIGINT NOT NULL,
    idempotency_key VARCHAR,
    call_id VARCHAR,
    record VARCHAR NOT NULL
);
