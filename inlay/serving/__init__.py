"""Variants behind an OpenAI API: the bank of one base, shared by everybody's requests.

requests.py        what a request asks for, and what comes back, token by token
kv_rows.py         the keys and values of the rows that are being answered, in one buffer
sampling.py        the next token of each row, from its logits
streaming.py       from token ids to text, as they come; stop strings
prefixes.py        keys and values of prompts seen before, by tenant and digest
fair_queue.py      who waits, tenant by tenant
row_adapters.py    which adapters each row of a batch gets: the bank's gate; passes over prompts and tokens
row.py             one request in the scheduler, from waiting to its last token
scheduler.py       one batch that requests join and leave between two tokens
shelf.py           what is loaded: brought beside serving, the least recently used put away
following.py       which version new requests get, as the registry says it now
splitting.py       canaries: one name, shares of its traffic
tenants.py         whose key it is, what it may reach, how often
errors.py          errors as OpenAI's clients read them
schemas.py         the bodies of requests and answers
app.py             the endpoints and their OpenAPI document
middleware.py      before them: the request's id, key and bounds; after them: its log line
request_record.py  what is known of one HTTP request: for headers, log, metrics
admission.py       what a caller may ask for, what is taken for it, its return
endpoint.py        what chats.py and completions.py have in common: prompts to rows, answers to choices
tokenization.py    chat templates, token ids, single tokens spelled
event_queue.py     events from the scheduler's thread into the event loop
response.py        one completion from admission to its last byte, whole or streamed
admin.py           metrics, what is loaded, drain: on an address of their own
metrics.py         what Prometheus is told
logs.py            one JSON line an event, with the request's id
settings.py        what `inlay serve` can be told
sockets.py         one app on one socket, run by uvicorn
server.py          `serve`: listens, drains, ends
vllm.py            a resolver and a middleware for vLLM's own server
pins.py            from a reference to a name that never moves, for engines that keep what a name meant
exports.py         plain adapters for another engine, each made once

Does not train, compare or register. Needs the extra `serve`.
"""
