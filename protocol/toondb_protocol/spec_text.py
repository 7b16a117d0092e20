"""The prose of ``protocol/SPEC.md``.

:mod:`toondb_protocol.spec` fills it: a line ``{{name}}`` becomes a generated section, ``{name}`` a number from
the code. What a table can say is not said here.
"""

from __future__ import annotations

__all__ = ["TEXT"]

TEXT = """
# The ToonDB wire protocol, version {version}

<!-- Rendered by `python -m toondb_protocol.spec` from the code. Do not edit: change the code and render again. -->

This document is all that is needed to write a client in any language: how processes of one machine talk to the ToonDB
daemon, `toondb-server`, which owns one database folder. The golden frames in `vectors/` (see `vectors/README.md`)
test a client without a server.

A minimal client needs the section on frames, the classic forms of the requests it uses, and the replies. A complete
one uses the extended forms: transactions, streamed scans, and errors with a code.

## 1. Transport

- A Unix domain socket of type `SOCK_STREAM`. Its default path is `toondb.sock` in the database folder.
- Permission is the permission of the socket file (mode 0600 by default), and optionally a list of user ids that the
  server allows. There is no login and no encryption: nothing leaves the machine.
- A client sends the first byte. There is no handshake; an extended PING may exchange hellos (section 9).
- Either side ends a connection by closing it. Its open transactions are aborted, its cursors dropped; requests that
  the server had already received whole may still be executed.

## 2. Frames

Both directions carry frames, one directly after the other:

| offset | size | field |
| --- | --- | --- |
| 0 | 1 | opcode of a request, or code of a reply |
| 1 | 4 | length of the payload in bytes, unsigned, without these {header} bytes |
| 5 | length | payload |

**All integers are little-endian and unsigned.** Nothing is aligned or padded. Text is UTF-8 without a terminator. A
frame may arrive in any number of pieces, and one read may return many frames.

A PUT of value `Ann` under key `user:1`; hex left, meaning right:

{{frame-example}}

### The frame cap

The server refuses a payload of more than {cap} bytes ({cap_mib} MiB), unless it was started with another
`--max-frame`. The length is checked on the header, before anything is buffered:

| the header has | answer | the connection |
| --- | --- | --- |
| a known opcode, a length over the cap | ERROR `FRAME_TOO_LARGE`; the payload is skipped unread | goes on |
| an unknown opcode, a length within the cap | ERROR `UNKNOWN_OPCODE`; the payload is skipped | goes on |
| an unknown opcode, a length over the cap | ERROR `UNKNOWN_OPCODE`, as text: framing is lost | is closed |
| a known opcode, a payload without its layout | ERROR `MALFORMED_REQUEST` | goes on |

A reply has at most {slack} bytes more than the cap, so that whatever a request could store can also be scanned: a
client should accept that much. A classic SCAN or QUERY whose result does not fit is an ERROR `FRAME_TOO_LARGE` that
names the extended form, and never a truncated result; so is a GET of a value that was stored while the cap was
larger.

## 3. Order and pipelining

- Requests of one connection are executed and answered **in the order in which they were sent**. A request has exactly
  one reply, or any number of ROW frames closed by one END_STREAM or ERROR.
- There are no request ids: the first reply belongs to the first unanswered request. A client that gives up on a reply
  (timeout, cancellation) must close the connection, because the late reply would be taken for the next one.
- A client may send many requests without waiting for replies (pipelining). It must go on reading while it writes:
  when its unread replies pile up, the server stops reading its requests, and when they do not drain within
  `--timeout-ms`, the server drops the connection.
- An ERROR ends only its own request. Pipelined requests behind it are executed all the same; whoever needs all or
  nothing uses a transaction.

## 4. Classic and extended form

Every request has two forms. The **classic** form has the opcode below and is understood by every server. The
**extended** form has bit `{extended}` set in the opcode, and its payload starts with `u64 txn`:

- `txn` names the transaction of this connection in which the request runs, 0 = outside any transaction: then a write
  commits by itself, and a read sees everything committed so far.
- COMMIT_TXN and ABORT_TXN name the transaction to end. BEGIN_TXN, CHECKPOINT, STATS and PING are not part of one:
  send 0 (transactions do not nest).
- A missing key is told apart from an empty value, scans and queries are streamed, and an ERROR is a map.

The form of a reply follows bit `{extended}` of its request, also when the opcode is unknown. Both forms may be mixed
on one connection; a classic request runs outside any transaction.

Where a body is a **msgpack map**: <https://msgpack.org>, one map with text keys (at every level) that fills the
payload; an empty payload means an empty map. Types are nil, bool, integers of 64 bits, floats, str (valid UTF-8),
bin, array and map. Extension types (timestamps among them), keys of other types, bytes after the map, and more than
{depth} levels of nesting are refused as `MALFORMED_REQUEST`, and so are unknown keys and values of another type
(except in a hello, whose unknown keys are ignored). Any valid encoding is accepted, also a longer one than necessary.
A key must not occur twice; if it does, the last one counts.

{{opcodes}}

## 5. Requests

{{messages}}

### Column types of CREATE_TABLE

{{column-types}}

`nullable` is 0 (NOT NULL) or 1. A table has at least one column. A name that exists already is an ERROR
`TABLE_EXISTS`.

### Rows and forms of QUERY

`prefix` names a table: the answer has its rows. Else it is a key prefix, and the answer has one row for each key with
that prefix, in key order: the fields of the value when it is a JSON object (no columns asked: the union of the fields
in first-seen order), or else the columns `key` and `value`. The answer is TOON text, one line such as

    result[2]{{name,price}}:Laptop,999;Mouse,25

The classic VALUE holds the whole text. In the extended form, by `form`:

- `toon`: the elements of all ROW arrays (bin), joined without a separator, are that same text in UTF-8. It may be cut
  anywhere, also inside a character;
- `rows`: ROW arrays hold a key (bin), the TOON text of that one row (bin of UTF-8), for example
  `result[1]{{name,price}}:Laptop,999`, the next key, and so on;
- `count`: no ROW; `rows` in END_STREAM is the count.

## 6. Replies

{{replies}}

A GET of a missing key: classic, an empty VALUE; extended, OK. So does GET_PATH.

## 7. Transactions

- BEGIN_TXN takes a snapshot and answers an id, which is never 0. The id is valid **on this connection only** and
  until COMMIT_TXN or ABORT_TXN, whatever they answer. A connection may have several open; the server bounds how many.
- Requests with that `txn` read the snapshot with the transaction's own writes on top. Nobody else sees these writes
  before the commit, and no transaction waits for another.
- `isolation`: `snapshot` (default) refuses the commit when a key that it wrote was written by another commit since
  the snapshot; `serializable` also when anything it read (keys, ranges, missing keys) was.
- A refused commit is an ERROR `TRANSACTION_CONFLICT`: nothing was applied, the transaction is gone. Run it again from
  the start.
- COMMIT_TXN answers the LSN (log sequence number) of the commit; LSNs grow by one per commit. OK or TXN_ID to a write
  is sent when the write is as durable as the server's `--sync-mode` promises (`full`, the default: it survives a
  power loss).
- A transaction that is not touched for `--timeout-ms` ({timeout} by default), or is open for too long, is aborted;
  the next request that names it gets `TRANSACTION_EXPIRED`. An id that was never begun here, or has ended, gets
  `TRANSACTION_NOT_FOUND`.
- A closed connection aborts its open transactions. When it breaks after COMMIT_TXN was sent and before the answer
  arrived, **the outcome is unknown**: read a key that the transaction wrote before running it again. The same holds
  for a write outside a transaction.

{{transaction-exchange}}

## 8. Scans and cursors

A classic SCAN answers one VALUE with everything. The extended SCAN streams:

- ROW frames hold at most `batch` rows each and stay below the frame cap; then END_STREAM. Replies to requests sent
  behind the scan wait for its end.
- With `window`, the stream ends early after about so many bytes (always after at least one row), and END_STREAM names
  a **cursor**. SCAN with that cursor, and with the same `txn`, goes on where the stream ended. In between the
  connection serves other requests.
- A cursor is valid on its connection and within its transaction, and keeps its snapshot: what other connections write
  meanwhile does not show. It is dropped when it is exhausted, closed, or its transaction ends, and when it is idle
  for `--timeout-ms` or open for too long (`SNAPSHOT_EXPIRED`). An unknown cursor gets `CURSOR_NOT_FOUND`.
- `prefix` stands alone, or `start` and `end` form the half-open range `[start, end)`, or `keys` lists what to read.
  Keys are ordered as unsigned bytes; `reverse` walks the same range from its end.
- An ERROR in place of END_STREAM ends a stream whose rows so far must be discarded.

{{scan-exchange}}

### Changes

The server keeps a history of what was committed, bounded in bytes. A SCAN with `since_lsn` reads the part of it after
that commit, for the keys of a range. To watch a range:

1. Send `since_lsn` nil. The answer is one END_STREAM whose `lsn` is the newest commit. (To watch from a known state
   on, do this first and read the range then; what is committed in between comes twice, and never not at all.)
2. Send that `lsn` as `since_lsn`, with `wait_ms`. The answer is any number of ROW, then END_STREAM with another `lsn`.
3. Go on with 2, with the new `lsn`. There may be more to read already, and then the answer comes at once.

A ROW is one flat array of five items for each change, `[lsn, kind, key, value, last, lsn, ...]`:

| item | type | meaning |
| --- | --- | --- |
| `lsn` | uint | the commit that made the change; commits come in order, and all of a commit before the next |
| `kind` | text | `put`, `delete`, or `expire` for a key whose time to live was over (up to some seconds ago) |
| `key` | bin | the key |
| `value` | bin or nil | the new value; nil unless `kind` is `put` |
| `last` | bool | no more changes of this commit follow in the range: its `lsn` can be gone on after |

- A stream holds whole commits, so it may be large, and commits never mix. A put whose value is long, or one of very
  many in its commit, and was written again since may be left out; the later change follows.
- While it waits, the server answers nothing else on this connection: requests sent behind it wait. It ends early,
  without a change, when the server stops. The time that a client waits for a reply must be longer than `wait_ms`.
- `HISTORY_TRIMMED`: history no longer reaches back to `since_lsn`. Begin with 1 again and read the range anew.
- `VALIDATION`: `since_lsn` is after the newest commit, so it is of another store, or this one was restored.

{{changes-exchange}}

## 9. Hello

An extended PING carries a hello, and its PONG the server's. Everything in it is optional for a client: a connection
works without. A client that needs an extended form sends a hello first, and falls back to classic forms when the
server answers ERROR or an empty PONG. Both sides ignore keys that they do not know. Features of this version:
{features}. Of these `options` is PUT with options, and `expiry` of SCAN; `changes` is `since_lsn` of SCAN; `filters` is
`where` of QUERY; `sql` is section 15, `collections` section 16.

{{hello}}

## 10. Errors

An ERROR to a classic request is text, `CODE: message remediation`. To an extended one it is a map of `code`,
`message`, `remediation`, `details`. Branch on the code, never on the message; codes are never renamed and never
reused. An ERROR to no request at all is in the text form, and the connection closes after it. The first byte of the
payload tells the forms apart: the text starts with an ASCII letter, the map with 0x80 or above.

{{errors}}

Some of these are raised by clients only (`FORKED_PROCESS`, `POOL_TIMEOUT`, `CONNECTION_LOST`,
`TRANSACTION_OUTCOME_UNKNOWN`), and are listed so that clients in all languages name them alike.

## 11. Refused and closed connections

{{refusals}}

The same form with `PEER_NOT_ALLOWED` refuses a user who is not on the server's list. A client that has already sent
its first request reads the refusal as the reply to it, so treat these two codes as the end of the connection wherever
they appear.

`--timeout-ms` ({timeout} by default; the hello says) closes a connection when

- a frame has begun to arrive and is not complete within it (the client is told by an unsolicited classic ERROR,
  `OPERATION_TIMEOUT`, before the end, when nothing else waits to be read),
- a reply is not read within it,

and aborts a transaction that is not touched, and drops a cursor that is not used, within it. A quiet connection
without a transaction may stay for ever.

When the server stops, it finishes the requests it received, aborts open transactions, and closes.

## 12. Limits

| what | limit | beyond it |
| --- | --- | --- |
| key, also the joined key of a path | 1 to {max_key} bytes | `INVALID_KEY` when empty, `KEY_TOO_LARGE` |
| payload of a frame | {cap} bytes by default, {max_cap} at the most | `FRAME_TOO_LARGE` |
| value | what fits a frame: the cap less 4 (extended 12) bytes and the key | `FRAME_TOO_LARGE` |
| scan prefix and range bounds | any length, also empty | |
| text, segment, column and name in classic layouts (`u16 length`) | 65535 bytes | cannot be written |
| segments, columns (`u16 count`) | 65535 | cannot be written |
| pairs and value lengths in the classic SCAN reply (`u32`) | 4294967295 | ERROR that names the extended form |
| nesting of msgpack bodies | {depth} levels | `MALFORMED_REQUEST` |
| msgpack body of a request | 4 MiB; of a QUERY the frame cap | `FRAME_TOO_LARGE` |
| arrays and maps in a msgpack body | 4096; 8 in one of more than 4 MiB | `MALFORMED_REQUEST` |
| `keys` of one SCAN | 65536 | `MALFORMED_REQUEST` |
| options of a PUT | text, numbers, bin, bool and nil, no array or map; 64 of them | `MALFORMED_REQUEST` |
| columns of CREATE_TABLE | 2000 | `VALIDATION` |
| open transactions, and open cursors of scans, of one connection | 256 each | `TRANSACTION` |
| open cursors of SQL statements of one connection | 16 | `TRANSACTION` |
| text of SQL | 4 MiB | `SQL` |
| values, and runs, in one QUERY with `runs` | 262144 each; any number in several with `more` | `MALFORMED_REQUEST` |
| bytes of all QUERYs of one statement with `more` | the server's `--max-transaction-bytes` | `TRANSACTION_TOO_LARGE` |
| bytes of all QUERYs of one operation with `more` | the server's `--max-transaction-bytes` | `TRANSACTION_TOO_LARGE` |
| values, and names in maps, in the arguments of one operation | {max_values} | `MALFORMED_REQUEST` |
| name of a namespace or collection | 1 to 64 of `A-Z`, `a-z`, `0-9`, `_`, `-`, `.` | `VALIDATION` |
| id of a document | 1 to 400 bytes | `VALIDATION` |
| key of a namespace | 1 to 500 bytes | `INVALID_KEY` when empty, `KEY_TOO_LARGE` |
| numbers in a vector | {max_dimension} | `VALIDATION` |
| vectors of one document | 1024 | `VALIDATION` |
| nesting of metadata, and of a filter | 32 levels | `VALIDATION` |
| `k` of a search | 100000 | `VALIDATION` |
| different words in a `text_query` | 4096 | `VALIDATION` |
| transaction ids, cursors, LSNs | `u64` | |

A path segment is not empty and contains no `/`; `INVALID_PATH` says so. The path `users`, `alice`, `email` is the key
`users/alice/email`.

## 13. Versions

The version is {version}. It is raised only when an existing layout changes its meaning, and peers of different
versions refuse each other by hello. Without a new version there may appear: new opcodes and reply codes, new keys in
msgpack maps, new features in the hello, new error codes, new counters in STATS, new column types. Therefore:

- a client treats an error code that it does not know as `ERROR`, and a reply code that it does not know as a broken
  connection;
- a client ignores keys of END_STREAM, ERROR, hello and STATS that it does not know;
- a client sends new opcodes and new keys only when the server's hello lists their feature, since a server refuses
  what it does not know;
- classic forms never change.

## 14. The record format, for direct readers

A process with permission to read the files may read the database folder with LMDB instead of asking the server. It
opens the folder (`data.mdb`, `lock.mdb`) read-only **with locking**, never writes, and holds no read transaction
longer than it must: the file grows meanwhile.

The named sub-database `{kv}` has the keys and their records, `{meta}` the key `format` (a msgpack map whose `version`
is {format}) and the key `lsn` (`u64` little-endian, the LSN of the last commit that this snapshot sees); the others
belong to the engine. A record, little-endian:

| offset | size | field |
| --- | --- | --- |
| 0 | 1 | tag, {record_tag} or {expiring_tag}: format version in the high nibble, flags in the low; refuse others |
| 1 | 8 | LSN of the commit that wrote the record |
| 9 | 4 | CRC-32 (that of zlib, gzip and PNG) of the 9 bytes before it, the key and all that follows |
| {record_header} | 8 | only with tag {expiring_tag}: milliseconds since 1970 UTC; from then on there is no such key |
| | rest | the value |

{{record-example}}

## 15. SQL

An extended QUERY with `sql` runs one statement in the dialect of SQLite <https://www.sqlite.org/lang.html>. Tables,
indexes and rows are in the same database as the keys, and commit with them.

- With `txn` 0 the statement is a transaction of its own: it is done and as durable as any other write when END_STREAM
  comes. Others that write at the same time are no error; the server runs it again.
- With a `txn` it is part of that transaction, and commits or aborts together with its keys. A statement that fails
  leaves the transaction as it was before it. Where SQLite has to undo more than that (`ON CONFLICT ROLLBACK`, a
  statement that was interrupted while it wrote), the whole transaction is aborted, keys included, and the requests
  that follow in it say so.
- The first statement of a transaction that would write although other SQL was committed since its BEGIN_TXN is an ERROR
  `TRANSACTION_CONFLICT`, early: the transaction goes on, but can only read tables. Two transactions that both write
  tables conflict, whatever rows they write.
- `BEGIN`, `COMMIT` and `ROLLBACK` as text are `SQL_FORBIDDEN`: use BEGIN_TXN, COMMIT_TXN and ABORT_TXN. `SAVEPOINT`,
  `RELEASE` and `ROLLBACK TO` work inside a transaction.
- Statements run on threads of the server: other connections are served meanwhile, replies of this one keep their order.
  A statement ends when its connection is closed, and with `SQL_INTERRUPTED` after `--statement-timeout-ms`; while
  the client reads its rows that time stands still.

### Values

| msgpack | SQL | remarks |
| --- | --- | --- |
| nil | NULL | |
| bool | INTEGER | as a parameter only: 0 or 1 |
| int | INTEGER | -2^63 to 2^63 - 1, beyond it `VALIDATION` |
| float | REAL | NaN as a parameter becomes NULL |
| str | TEXT | valid UTF-8, may contain NUL; a stored text that is no UTF-8 is an ERROR `SQL`: select it as BLOB |
| bin | BLOB | |

`params` is an array for `?` and `?1`, whose length is the number of parameters, or a map for `:name`, `@name` and
`$name`, by the name alone; names that the statement does not have are ignored.

### Replies

1. One ROW with the names of the columns, unless the statement gives none. The second of two alike is `name:1`.
2. ROWs with values, `[row 1 column 1, row 1 column 2, ..., row 2 column 1, ...]`, as many rows as fit: the number of
   names divides the number of values.
3. END_STREAM with `rows`, `cursor`, `affected` and `last_row_id`. `affected` counts what INSERT, UPDATE and DELETE did,
   without triggers and cascades.

{{sql-exchange}}

With `window`, the stream ends early after about so many bytes, as that of a SCAN does, and END_STREAM names a cursor;
SCAN with `cursor` (and `window` or `close`) goes on or ends it. All windows are of one snapshot. A statement that
writes has run to its end before its first row is sent. An ERROR `FRAME_TOO_LARGE` says that a row does not fit into a
frame; a statement that writes was done nevertheless.

### Many runs of one statement

With `runs`, the statement is run so many times, all of them or, when one fails, none; rows that it gives are dropped.
`params` is one flat array of the values of all runs, which all have the same number of them; with `names` they
go by name. What does not fit into one frame is sent in parts:

- every part is a QUERY with the same `txn`, `sql` and `names`, values for some runs, and `part`: 0, 1, 2 and so on. All
  but the last have `more` true. Each is answered, those with `more` by an END_STREAM of zeros;
- nothing runs before the last part. When one is refused, or `part` does not follow, those before it are forgotten and
  those after it refused (`MALFORMED_REQUEST`), so parts may be pipelined;
- other requests may come between parts, but no other QUERY with `sql`. Parts are forgotten when the next one
  does not come within `--timeout-ms`.

### Scripts

With `script` true, `sql` holds any number of statements, separated by `;`, without parameters: all of them are done or,
when one fails, none. Rows are dropped; `affected` is the sum.

### What is refused

| what | code |
| --- | --- |
| a mistake in the statement, an empty text, more than one statement, a failed function | `SQL` |
| more memory than `--sql-memory` allows | `SQL` |
| a violated constraint | `SQL_CONSTRAINT` |
| ATTACH, DETACH, VACUUM, temporary tables, most PRAGMAs, loading of extensions, access to files | `SQL_FORBIDDEN` |
| parameters that do not fit the statement, NUL in its text | `VALIDATION` |
| it took too long | `SQL_INTERRUPTED` |
| others wrote for too long | `LOCK_TIMEOUT` |
| what it writes is more than a transaction takes | `TRANSACTION_TOO_LARGE` |
| a cursor that was idle or open for too long | `SNAPSHOT_EXPIRED` |

## 16. Namespaces and collections

An extended QUERY with `op` carries out one operation. `args` holds its arguments: a msgpack map, as bin inside the
map of the body. A namespace has keys of its own and collections, a collection documents; they are in the same
database as keys and tables, and commit with them.

{{operations}}

An argument that is not given is the same as nil: its default. An unknown one is `VALIDATION`.

- **Vectors** (`vector`, `vectors`) are bin: float32, little-endian, one vector after the other, `dimension` numbers
  in each. A query vector has as many numbers as its bytes tell. NaN, infinities, and under `cosine` vectors without a
  direction are `VALIDATION`; bytes that do not make so many numbers, and another dimension than that of the
  collection, `DIMENSION_MISMATCH`.
- `ids`, `metadatas` and `contents` of `document_put` are arrays of the same length, and `vectors` has one for each,
  or is nil for documents without. An id that is there already is replaced. All are stored or none.
- **Metadata** is a map of nil, bool, int, float (finite), text, arrays and maps. A **filter** is a map as in `where`.
- `metric` is `cosine`, `euclidean` or `dot_product`; `aggregation` is `max_pooling`, `mean_pooling` or
  `weighted_sum`, which alone takes `weights`, a map of numbers by name.
- `distance` is 1 - cosine, the Euclidean distance (L2), or the negative dot product: lower is nearer. `score` is
  higher for what fits better: 1 - distance, 1 / (1 + distance), or the dot product; for words BM25; for both together
  `alpha / (k_rrf + r) + (1 - alpha) / (k_rrf + s)` with the ranks `r` and `s` (from 1) by vector and by words, or,
  when `rrf_fusion` is false, both scores scaled to 0 to 1 and weighed by `alpha` and `1 - alpha`.
- Operations that answer a page (`document_iterate`, `namespace_kv_scan`) or items that were asked for by name
  (`document_get`, `namespace_kv_get`) may answer fewer, when they are large, but never none: go on behind the last
  one. A page without items is the end.

### Replies

Any number of ROW, each an array of one bin, then END_STREAM with their count. The bins, joined, are the result as
msgpack.

{{operation-exchange}}

### Transactions

- With `txn` 0 an operation that reads sees everything committed so far; one that writes commits by itself, and is run
  again by the server when it conflicts with others.
- With a `txn` it reads the snapshot of that transaction with its own writes on top, searches too, and writes into it.
  One that fails leaves the transaction as it was before.
- Two transactions conflict when they write the same document, key or name, and when one writes into what the other
  deletes. Documents in a collection with `hybrid` share one index of words: two transactions that write any of them
  conflict, the second one perhaps early, with `TRANSACTION_CONFLICT` as the answer to the write.

### Arguments that do not fit into one frame

`args` is cut anywhere, into parts that go into QUERYs of their own with the same `txn` and `op`, and `part`: 0, 1, 2
and so on. All but the last have `more` true, and are answered by an END_STREAM of zeros. Nothing is done before the
last one. When a part is refused or does not follow, those before it are forgotten and those after it refused
(`MALFORMED_REQUEST`), so parts may be pipelined. Other requests may come between them, but no other QUERY with `op`.
They are forgotten when the next one does not come within `--timeout-ms`. """
