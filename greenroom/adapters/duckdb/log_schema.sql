-- One log file: what was committed, in the order of commits. Rows are appended and never changed or deleted, so the
-- rowid of a batch is its batch_id less the first one of the file. No PRIMARY KEY and no UNIQUE: checkpoints would
-- rewrite their indexes (reference/field.md section 4). Each column costs a commit 45 microseconds of CPU.

CREATE TABLE IF NOT EXISTS meta (name VARCHAR NOT NULL, value VARCHAR NOT NULL);

-- One row is one batch of consecutive events of one session: a packed header, then the packed events.
CREATE TABLE IF NOT EXISTS batches (session_key BIGINT NOT NULL, last_seq BIGINT NOT NULL, batch BLOB NOT NULL);

-- Who owned a session, and every session that has rows here: the file can be read without any other.
CREATE TABLE IF NOT EXISTS grants (
    session_key BIGINT NOT NULL,
    session_id VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    owner VARCHAR NOT NULL,
    granted_at_us BIGINT NOT NULL
);
