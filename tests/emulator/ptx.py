"""PTX as a list of operations of a warp: a register is an array of 32 lanes, an instruction a loop over them.

An instruction without the names of its operands is a form. Kernels of every size share about a hundred of them, C functions
that are compiled once; an operation is a form, its line and where its operands lie, so a kernel needs no compiler of its own.

What occurs in kernels of independent lanes is known; whatever else comes is refused with its line: barriers, shared memory,
atomics, other warps, branches that lanes take differently (at run time). Approximate instructions are rounded correctly.
"""

import re
from dataclasses import dataclass, field

SIZES = {"pred": 4, "f32": 4} | {f"{kind}{8 * size}": size for kind in "bus" for size in (1, 2, 4, 8)}
CLASSES = ("float", "special", "integer", "move", "load", "store", "shuffle", "branch")
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "div": "/", "rem": "%"}
SPECIAL = {"%tid.x": "lane", "%laneid": "lane", "%ctaid.x": "program", "%nctaid.x": "grid"}
ZERO = {f"%{name}.{axis}" for name in ("tid", "ctaid") for axis in "yz"}
CACHE_HINTS = {"global", "L1::evict_normal", "cs", "cg", "ca", "wt", "wb"}
FUNCTIONS = {"f16": "from_f16", "bf16": "from_bf16"}


class Refused(Exception):
    """An instruction that the executor does not know."""


def c_type(kind):
    return "float" if kind == "f32" else f"{'s' if kind[0] == 's' else 'u'}{8 * SIZES[kind]}"


def split(text):
    """Operands, of which those in braces or brackets are one."""
    return [x.strip() for x in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text) if x.strip()]


def wider(kind):
    return kind[0] + str(16 * SIZES[kind])


@dataclass
class Operation:
    """A form, in which operands are A0, A1, ..; the line it came from, its operands, its class and a label to go to."""

    line: int
    operands: list = field(default_factory=list)
    form: list = field(default_factory=list)
    of: str = "move"
    to: str = ""

    @property
    def text(self):
        """The form's C function, @ for its name."""
        names = "".join(f" void *A{i} = op->a[{i}];" for i in range(len(self.operands)))
        return "\n".join([f"const Op *@(Device *d, const Op *op) {{{names}", *self.form, "return op + 1;", "}", ""])


class Kernel:
    """A kernel's name, parameters and `operations`, from PTX.

    An operand is a register's name or a tuple: ("param", number), ("constant", size, bits), ("lane",), ("program",), ("grid",)
    """

    def __init__(self, ptx):
        entry = re.search(r"\.visible \.entry (\w+)\(\s*(.*?)\)(.*?)\{", ptx, re.S)
        self.name = entry[1]
        self.params = re.findall(r"(\w+),?\s*$", entry[2], re.M)
        if not re.search(r"\.reqntid 32\b", entry[3]):
            raise Refused(f"{self.name}: more than one warp: {entry[3].strip()}")
        self.registers, self.labels, self.operations = {}, {}, []
        self.lines = ptx.split("\n")
        first = ptx[: entry.end()].count("\n")
        for number, line in enumerate(self.lines[first + 1 :], first + 1):
            if line.startswith("$L__func_end"):
                break
            self.number = number
            text = re.sub(r"//.*", "", line).strip()
            if text and not text.startswith((".loc", ".pragma")):
                self.statements(text)

    def statements(self, text):
        """A line's statements; inline assembly may have several, and braces of its own."""
        while text:
            if text[0] in "{}":
                text = text[1:].strip()
            elif match := re.match(r"(\$\w+):", text):
                self.labels[match[1]] = len(self.operations)
                text = text[match.end() :].strip()
            else:
                statement, _, text = text.partition(";")
                text = text.strip()
                try:
                    self.statement(statement.strip())
                except (Refused, KeyError, IndexError, ValueError) as error:
                    raise Refused(f"{self.name}, line {self.number + 1}: {statement.strip()}: {error!r}") from None

    def statement(self, text):
        if match := re.match(r"\.reg \.(\w+)\s+(.*)", text):
            for name in match[2].split(","):
                name, _, count = name.strip().rstrip(">").partition("<")
                for register in [f"{name}{i}" for i in range(int(count))] if count else [name]:
                    if self.registers.setdefault(register, match[1]) != match[1]:
                        raise Refused(f"{register} has two types")
            return
        self.now = Operation(self.number)
        guard = None
        if match := re.match(r"@(!?)(%?\w+)\s+(.*)", text, re.S):
            guard, text = f"{'!' if match[1] else ''}{self.array(match[2])}[l]", match[3]
        op, _, arguments = text.replace("\t", " ").partition(" ")
        self.instruction(op, split(arguments), guard)
        self.operations.append(self.now)

    # ------------------------------------------------------------------------------------------------- operands

    def place(self, operand):
        """An operand of the operation in work: its name in the form."""
        if operand not in self.now.operands:
            self.now.operands.append(operand)
        return f"A{self.now.operands.index(operand)}"

    def array(self, register):
        return f"(({c_type(self.registers[register])} *){self.place(register)})"

    def constant(self, number, size):
        return self.place(("constant", size, number & (256**size - 1)))

    def value(self, x, kind):
        """An operand, of one lane, as C of the type `kind`."""
        if x in SPECIAL:
            return f"(({c_type(kind)})((u32 *){self.place((SPECIAL[x],))})[l])"
        number = re.fullmatch(r"(?:0[fF]|(0x))([0-9a-fA-F]+)U?|(-?\d+)", {"%ntid.x": "32"}.get(x, "0" if x in ZERO else x))
        if number and (kind != "f32" or number[2]):
            number = int(number[3] or f"0x{number[2]}", 0)
            return f"(({c_type(kind)} *){self.constant(number, SIZES[kind])})[l]"
        own = self.registers[x]
        if SIZES[own] == SIZES[kind]:
            return f"(({c_type(kind)} *){self.place(x)})[l]"
        return f"(({c_type(kind)}){self.array(x)}[l])"

    def put(self, x, kind, value, guard=None):
        own = self.registers[x]
        if SIZES[own] < SIZES[kind]:
            raise Refused(f"{x} is too narrow")
        target = f"(({c_type(kind)} *){self.place(x)})[l]" if SIZES[own] == SIZES[kind] else f"{self.array(x)}[l]"
        self.now.form.append(f"LANES {f'if ({guard}) ' if guard else ''}{target} = ({c_type(kind)})({value});")

    # --------------------------------------------------------------------------------------------- instructions

    def instruction(self, op, a, guard):
        name, *mods = op.split(".")
        kind = mods[-1] if mods else ""
        if name in ("bra", "ret"):
            self.branch(name, a, guard)
        elif name in ("ld", "st") and "param" not in mods:
            self.access(name, mods, a, guard)
        elif name == "shfl":
            self.shuffle(mods, a, guard)
        elif name == "mov" and (a[0][0] == "{" or a[1][0] == "{"):
            self.pack(a, kind, guard)
        elif name == "setp":
            self.compare(mods, a, guard)
        else:
            result, value, self.now.of = self.expression(name, mods[:-1], kind, a)
            self.put(a[0], result, value, guard)

    def branch(self, name, a, guard):
        self.now.of, self.now.to = "branch", "" if name == "ret" else a[0]
        jump = "return 0;" if name == "ret" else "return op->to;"
        if guard:
            self.now.form.append(f"u32 on[32]; LANES on[l] = {guard}; u32 u = agree(on);")
            jump = f"if (u == 2) return fail(d, DIVERGENT, op->line, 0, 0, 0); if (u) {jump}"
        self.now.form.append(jump)

    def access(self, name, mods, a, guard):
        """A load or store of global memory."""
        *mods, kind = mods
        parts = int(next((m[1] for m in mods if m in ("v2", "v4")), 1))
        if "global" not in mods or set(mods) - CACHE_HINTS - {"v2", "v4"}:
            raise Refused("a space or a mode that is not known")
        where, registers = a if name == "st" else a[::-1]
        base, offset = re.fullmatch(r"\[\s*(%\w+)\s*(?:\+\s*(-?\d+))?\s*\]", where).groups()
        registers, size, store = split(registers.strip("{} ")), SIZES[kind], int(name == "st")
        at = f"{self.array(base)}[l] + ((s64 *){self.constant(int(offset or 0), 8)})[l]"
        self.now.form += [
            f"u32 on[32]; u64 at[32]; LANES {{ on[l] = {guard or 1}; at[l] = {at}; }}",
            f"if (request(d, at, on, {parts}, {size}, {store}, op->line)) return 0;",
        ]
        for i, register in enumerate(registers):
            if store:
                self.now.form.append(f"STORE({c_type(kind)}, {self.value(register, kind)}, at, {i * size});")
            else:
                self.now.form.append(f"LOAD({c_type(kind)}, {self.array(register)}, at, {i * size});")
        assert len(registers) == parts
        self.now.of = "store" if store else "load"

    def shuffle(self, mods, a, guard):
        """Plain indexing, counted: no kernel here should have one."""
        if mods[0] != "sync" or mods[-1] != "b32" or mods[1] not in ("idx", "bfly") or guard or a[3] != "31":
            raise Refused("a mode that is not known")
        lane = self.value(a[2], "b32") + (" & 31" if mods[1] == "idx" else " ^ l")
        self.now.form.append(f"u32 x[32]; LANES x[l] = {self.value(a[1], 'b32')};")
        self.put(a[0].split("|")[0], "b32", f"x[({lane}) & 31]")
        self.now.of = "shuffle"

    def pack(self, a, kind, guard):
        """mov between a register and a group of narrower ones."""
        whole, group = a if a[1][0] == "{" else a[::-1]
        parts = split(group.strip("{} "))
        part = f"b{8 * SIZES[kind] // len(parts)}"
        wide, bits = c_type(kind), 8 * SIZES[part]
        if a[1] == group:
            terms = (f"(({wide}){self.value(x, part)} << {i * bits})" for i, x in enumerate(parts))
            self.put(whole, kind, " | ".join(terms), guard)
        else:
            for i, x in enumerate(parts):
                if x != "_":
                    self.put(x, part, f"{self.value(whole, kind)} >> {i * bits}", guard)

    def compare(self, mods, a, guard):
        test, *mods, kind = mods
        if mods not in ([], ["ftz"]):
            raise Refused("a mode that is not known")
        base = re.sub(r"(?<=..)u$", "", test)
        for i, target in enumerate(a[0].split("|")):
            if kind in SIZES:
                x, y = (self.value(operand, kind) for operand in a[1:3])
            else:  # a half type, or two in a register
                half = kind.removesuffix("x2")
                x, y = (f"{FUNCTIONS[half]}(({self.value(z, 'b32')} >> {16 * i}) & 65535)" for z in a[1:3])
            if test in ("nan", "num"):
                value = f"(({x}) != ({x}) | ({y}) != ({y})) == {int(test == 'nan')}"
            else:
                unordered = f"(({x}) != ({x}) | ({y}) != ({y}))"
                value = f"({x}) {COMPARE[base]} ({y})"
                if kind[0] not in "usbp" or kind.startswith("bf"):
                    value = f"{unordered} | ({value})" if test != base else f"!{unordered} & ({value})"
            self.put(target, "pred", value, guard)

    def expression(self, name, mods, kind, a):
        """The type, the value and the class of an instruction that computes one register from others."""

        def values(of=kind):
            return [self.value(operand, of) for operand in a[1:]]

        if name == "ld":  # of a parameter
            return kind, f"((u64 *){self.place(('param', self.params.index(a[1].strip('[]'))))})[l]", "move"
        if name == "mov":
            return ("b32" if kind == "f32" else kind), self.value(a[1], "b32" if kind == "f32" else kind), "move"
        if name == "selp":
            bits = "b32" if kind == "f32" else kind
            return bits, f"{self.value(a[3], 'pred')} ? {self.value(a[1], bits)} : {self.value(a[2], bits)}", "move"
        if name == "cvt":
            return self.convert(mods, kind, a)
        if name in ("neg", "abs") and kind in ("f16", "bf16", "f16x2", "bf16x2"):
            bits, sign = ("b32", "0x80008000u") if kind.endswith("x2") else ("b16", "0x8000u")
            return bits, f"{self.value(a[1], bits)} {'^' if name == 'neg' else '& ~'}{sign}", "move"
        if kind == "f32":
            return kind, *self.floating(name, mods, values())
        if name in ("mul", "mad") and "lo" not in mods:
            wide = wider(kind) if SIZES[kind] < 8 else None
            x, y = (
                f"({c_type(wide) if wide else ('__int128' if kind[0] == 's' else 'unsigned __int128')}){v}"
                for v in values()[:2]
            )
            if mods == ["hi"]:
                return kind, f"({x} * {y}) >> {8 * SIZES[kind]}" if name == "mul" else None, "integer"
            if mods != ["wide"]:
                raise Refused("a mode that is not known")
            return wide, f"{x} * {y}" + (f" + {self.value(a[3], wide)}" if name == "mad" else ""), "integer"
        if set(mods) - {"lo"}:
            raise Refused("a mode that is not known")
        return kind, self.integer(name, kind, values() if name not in ("shl", "shr", "bfe", "prmt") else None, a), "integer"

    def integer(self, name, kind, v, a):
        if name == "mad":
            return f"{v[0]} * {v[1]} + {v[2]}"
        if name in ("min", "max"):
            return f"{v[0]} {'<' if name == 'min' else '>'} {v[1]} ? {v[0]} : {v[1]}"
        if name in SYMBOLS:
            return f"{v[0]} {SYMBOLS[name]} {v[1]}"
        if name in ("neg", "not", "abs"):
            if kind == "pred":
                return f"{v[0]} ^ 1"
            return {"neg": f"-{v[0]}", "not": f"~{v[0]}", "abs": f"{v[0]} < 0 ? -{v[0]} : {v[0]}"}[name]
        if name in ("shl", "shr"):
            x, by, bits = self.value(a[1], kind), self.value(a[2], "u32"), 8 * SIZES[kind]
            beyond = f"{x} >> {bits - 1}" if name == "shr" and kind[0] == "s" else "0"
            return f"{by} >= {bits} ? {beyond} : {x} {'<<' if name == 'shl' else '>>'} ({by} & {bits - 1})"
        if name == "bfe" and kind == "u32":
            x, at, bits = (self.value(operand, "u32") for operand in a[1:])
            mask = f"(u32)((1ull << ({bits} & 31)) - 1 | -(u64)(({bits} & 255) > 31))"
            return f"({at} & 255) > 31 ? 0 : ({x} >> ({at} & 31)) & {mask}"
        if name == "prmt":
            x, y = (f"(u64){self.value(operand, 'u32')}" for operand in a[1:3])
            at = [f"({self.value(a[3], 'u32')} >> {4 * i})" for i in range(4)]
            byte = [f"(u32)((({x} | {y} << 32) >> (8 * ({n} & 7))) & 255)" for n in at]
            return " | ".join(f"((({n} & 8) ? ({b} >> 7) * 255 : {b}) << {8 * i})" for i, (n, b) in enumerate(zip(at, byte)))
        raise Refused("not known")

    @staticmethod
    def floating(name, mods, v):
        """Value and class of an instruction on float32."""
        if set(mods) - {"rn", "ftz", "full", "approx"}:
            raise Refused("a mode that is not known")
        flush = (lambda x: f"ftz({x})") if "ftz" in mods else (lambda x: x)
        if name in ("add", "sub", "mul"):
            return flush(f"{v[0]} {SYMBOLS[name]} {v[1]}"), "float"
        if name == "fma":
            return flush(f"fmaf({v[0]}, {v[1]}, {v[2]})"), "float"
        if name in ("min", "max"):
            return f"{name}_({v[0]}, {v[1]})", "float"
        if name in ("neg", "abs"):
            return {"neg": f"-{v[0]}", "abs": f"fabsf({v[0]})"}[name], "float"
        special = {
            "ex2": "ex2({0})",
            # always as far off as a GPU's may be, so that what relies on it is off too
            "rsqrt": "(float)((1.0 + 0x1p-23) / sqrt((double){0}))",
            "sqrt": "(float)sqrt((double){0})",
            "rcp": "1.f / {0}",
            "div": "{0} / {1}",
        }
        return flush(special[name].format(*map(flush, v))), "special"

    def convert(self, mods, kind, a):
        to = mods[-1]
        if set(mods[:-1]) - {"rn"}:
            raise Refused("a rounding that is not known")
        if to in ("bf16x2", "f16x2") and kind == "f32":
            half = to.removesuffix("x2")
            return "b32", f"{half}({self.value(a[2], kind)}) | {half}({self.value(a[1], kind)}) << 16", "move"
        if to in FUNCTIONS and kind == "f32":
            return "b16", f"{to}({self.value(a[1], kind)})", "move"
        if kind in FUNCTIONS and to == "f32":
            return "f32", f"{FUNCTIONS[kind]}({self.value(a[1], 'b16')})", "move"
        if kind[0] in "us" and (to == "f32" or to[0] in "us"):
            return to, self.value(a[1], kind), "move"
        raise Refused("types that are not known")
