"""Plays systemd on a bus: ``fake_systemd.py ADDRESS FILE``. What the file says is what happens to the job of a unit.

======================  =====================================================================
what the file says      what happens
======================  =====================================================================
``error NAME``          the call is refused with this error
``result RESULT``       the job ends like this
``early RESULT``        the same, but the signal comes before the answer that names the job
``forged``              somebody else says that the job has failed, and later it is done
``taken N``             the unit exists, for the first N calls
``silent``              there is no answer
``unfinished``          the job does not end
``ended``               the job is done and the unit is gone
nothing                 the job is done
======================  =====================================================================
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeAlias

import jeepney
from jeepney.io.blocking import open_dbus_connection

Message: TypeAlias = Any  # jeepney has no types

NAME = "org.freedesktop.systemd1"
MANAGER = jeepney.DBusAddress("/org/freedesktop/systemd1", bus_name=NAME, interface=f"{NAME}.Manager")
FIELD = jeepney.HeaderFields


class Systemd:
    """What answers on the bus."""

    def __init__(self, address: str, orders: Path) -> None:
        self.orders = orders
        self.bus = open_dbus_connection(address)
        self.other = open_dbus_connection(address)
        self.jobs = 0
        self.refused = 0
        self.gone: set[str] = set()

    def serve(self) -> None:
        """Answer until the bus has gone."""
        self.bus.send_and_get_reply(jeepney.message_bus.RequestName(NAME))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        try:
            while True:
                message = self.bus.receive()
                if message.header.message_type is jeepney.MessageType.method_call:
                    self.answer(message)
        except ConnectionResetError:
            self.bus.close()
            self.other.close()

    def answer(self, call: Message) -> None:
        """Answer a call."""
        match call.header.fields.get(FIELD.member):
            case "Subscribe":
                self.reply(call)
            case "StartTransientUnit":
                what, _, argument = self.orders.read_text().partition(" ")
                self.start(call, call.body[0], what, argument)
            case "GetUnit" if call.body[0] in self.gone:
                self.refuse(call, f"{NAME}.NoSuchUnit")
            case "GetUnit":
                self.reply(call, "o", "/unit/of/it")
            case "Get":
                self.reply(call, "v", ("s", f"/group/of/{call.header.fields[FIELD.path][1:]}"))
            case unknown:
                self.refuse(call, f"org.freedesktop.DBus.Error.UnknownMethod.{unknown}")

    def start(self, call: Message, name: str, what: str, argument: str) -> None:
        """Do to a new unit what is asked for."""
        match what:
            case "error":
                self.refuse(call, argument)
            case "taken" if self.refused < int(argument):
                self.refused += 1
                self.refuse(call, f"{NAME}.UnitExists")
            case "early":
                self.jobs += 1
                self.removed(name, argument)
                self.reply(call, "o", f"/job/{self.jobs}")
            case "forged":
                self.jobs += 1
                self.reply(call, "o", f"/job/{self.jobs}")
                forged = self.signal(self.jobs, name, "failed")
                forged.header.fields[FIELD.destination] = call.header.fields[FIELD.sender]
                self.other.send(forged)
                # What it was sent before is at the bus when it has an answer.
                self.other.send_and_get_reply(jeepney.message_bus.GetId())
                self.removed(name, "done")
            case "unfinished":
                self.reply(call, "o", "/job/0")
            case "silent":
                pass
            case "ended":
                self.gone.add(name)
                self.finish(call, name, "done")
            case "result":
                self.finish(call, name, argument)
            case _:
                self.finish(call, name, "done")

    def finish(self, call: Message, name: str, result: str) -> None:
        """Begin a job and end it, and another one before."""
        self.jobs += 2
        self.reply(call, "o", f"/job/{self.jobs}")
        self.bus.send(self.signal(self.jobs - 1, "other.service", "failed"))
        self.removed(name, result)

    def removed(self, name: str, result: str) -> None:
        """Tell that the newest job has ended."""
        self.bus.send(self.signal(self.jobs, name, result))

    def signal(self, job: int, name: str, result: str) -> Message:
        """Return the signal that a job has ended."""
        return jeepney.new_signal(MANAGER, "JobRemoved", "uoss", (job, f"/job/{job}", name, result))

    def reply(self, call: Message, signature: str | None = None, *body: object) -> None:
        """Answer a call."""
        self.bus.send(jeepney.new_method_return(call, signature, body))

    def refuse(self, call: Message, error: str) -> None:
        """Answer a call with an error."""
        self.bus.send(jeepney.new_error(call, error, "s", ("not today",)))


if __name__ == "__main__":
    Systemd(sys.argv[1], Path(sys.argv[2])).serve()
