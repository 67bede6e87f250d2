-- The records file: projections of the log up to watermark.batch_id, made again from the batches past it, and what
-- the sealed parts know of owners. Small, and changed in place, unlike the log.

CREATE TABLE IF NOT EXISTS watermark (batch_id BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
    session_id VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    agent_id VARCHAR NOT NULL,
    tags VARCHAR[] NOT NULL,
    tenant VARCHAR,
    created_at_us BIGINT NOT NULL,
    updated_at_us BIGINT NOT NULL,
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

-- The newest owner of each session as of when it was last sealed.
CREATE TABLE IF NOT EXISTS owners (
    session_key BIGINT NOT NULL,
    session_id VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    owner VARCHAR NOT NULL,
    granted_at_us BIGINT NOT NULL
);

-- Tools that travel by pickle: part of a session, never of its events.
CREATE TABLE IF NOT EXISTS session_tools (session_id VARCHAR NOT NULL, tools BLOB NOT NULL);
