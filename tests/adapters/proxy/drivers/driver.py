# asyncpg; a query that takes too long it cancels itself, in TLS.
import asyncio
import os
import ssl
import sys

import asyncpg


async def session(port, tls):
    where = {"host": os.environ["PGHOST"], "user": os.environ["PGUSER"], "password": os.environ["PGPASSWORD"]}
    connection = await asyncpg.connect(port=port, database="postgres", ssl=tls, **where)
    encrypted = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    try:
        await connection.fetch("SELECT pg_sleep(60)", timeout=0.3)
        ended = "slept"
    except asyncio.TimeoutError:
        # It waits until the server has ended the query.
        await connection.fetchval("SELECT 1")
        ended = "cancelled"
    await connection.close()
    return f"{'encrypted' if encrypted else 'plain'}, {ended}"


async def main(authority, *ports):
    verified = ssl.create_default_context(cafile=authority)
    for port in ports:
        for mode, tls in (("require", "require"), ("verify-full", verified)):
            print(f"{mode}: {await session(int(port), tls)}")


asyncio.run(main(*sys.argv[1:]))
