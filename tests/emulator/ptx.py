"""PTX as C, a warp at a time: a register becomes an array of 32 lanes and an instruction a loop over them.

What occurs in kernels of independent lanes is known; whatever else comes is refused with its line: barriers, shared memory,
atomics, other warps, branches that lanes take differently (at run time). Approximate instructions are rounded correctly.
"""

import re
from pathlib import Path

HEADER = (Path(__file__).parent / "warp.h").read_text()
SIZES = {"pred": 4, "f32": 4} | {f"{kind}{8 * size}": size for kind in "bus" for size in (1, 2, 4, 8)}
CLASSES = ("float", "special", "integer", "move", "load", "store", "shuffle", "branch")
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
SYMBOLS = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^", "div": "/", "rem": "%"}
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


class Kernel:
    """A kernel's C code (`code`), its name and its number of parameters, from PTX."""

    def __init__(self, ptx):
        entry = re.search(r"\.visible \.entry (\w+)\(\s*(.*?)\)(.*?)\{", ptx, re.S)
        self.name = entry[1]
        self.params = re.findall(r"(\w+),?\s*$", entry[2], re.M)
        if not re.search(r"\.reqntid 32\b", entry[3]):
            raise Refused(f"{self.name}: more than one warp: {entry[3].strip()}")
        self.registers, self.out, self.counts = {}, [], dict.fromkeys(CLASSES, 0)
        self.lines = ptx.split("\n")
        first = ptx[: entry.end()].count("\n")
        for number, line in enumerate(self.lines[first + 1 :], first + 1):
            if line.startswith("$L__func_end"):
                break
            self.number = number
            text = re.sub(r"//.*", "", line).strip()
            if number > first and text and not text.startswith((".loc", ".pragma")):
                self.statements(text)
        self.code = HEADER + self.function()

    def function(self):
        body = "\n".join(self.out).rstrip().removesuffix("}")
        return f"""
static int warp(const u64 *params, Device *d, u32 grid, u32 program) {{
u32 on[32]; u64 at[32];
{body}
return 0;
}}
int run(const u64 *params, Device *d, u32 grid, u32 first, u32 last) {{
  for (u32 program = first; program < last; program++) if (warp(params, d, grid, program)) return 1;
  return 0;
}}
"""

    def statements(self, text):
        """A line's statements; inline assembly may have several, and braces of its own."""
        while text:
            if text[0] in "{}":
                self.out.append(text[0])
                text = text[1:].strip()
            elif match := re.match(r"\$(\w+):", text):
                self.flush()
                self.out.append(f"{match[1]}: ;")
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
                    self.registers[register] = match[1]
                    self.out.append(f"{c_type(match[1])} {self.array(register)}[32];")
            return
        guard = None
        if match := re.match(r"@(!?)(%?\w+)\s+(.*)", text, re.S):
            guard, text = f"{'!' if match[1] else ''}{self.array(match[2])}[l]", match[3]
        op, _, arguments = text.replace("\t", " ").partition(" ")
        self.instruction(op, split(arguments), guard)

    def flush(self):
        """Counts what a stretch without a branch has executed."""
        counted = [f"d->executed[{CLASSES.index(c)}] += {n};" for c, n in self.counts.items() if n]
        self.out += [" ".join(counted)] if counted else []
        self.counts = dict.fromkeys(CLASSES, 0)

    # ------------------------------------------------------------------------------------------------- operands

    @staticmethod
    def array(register):
        return "R_" + register.lstrip("%")

    def value(self, x, kind):
        """An operand, of one lane, as C of the type `kind`."""
        special = {"%tid.x": "l", "%laneid": "l", "%ctaid.x": "program", "%nctaid.x": "grid", "%ntid.x": "32"}
        zero = {f"%{name}.{axis}": "0" for name in ("tid", "ctaid") for axis in "yz"}
        if x in special or x in zero:
            return f"(({c_type(kind)}){(special | zero)[x]})"
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", x):
            return f"f_(0x{match[1]}u)" if kind == "f32" else f"0x{match[1]}u"
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+U?", x):
            return f"(({c_type(kind)}){x.rstrip('U')}{'ull' if x[0] == '0' and len(x) > 1 else 'll'})"
        own = self.registers[x]
        if SIZES[own] == SIZES[kind]:
            return f"(({c_type(kind)} *){self.array(x)})[l]"
        return f"(({c_type(kind)}){self.array(x)}[l])"

    def put(self, x, kind, value, guard=None):
        own = self.registers[x]
        if SIZES[own] < SIZES[kind]:
            raise Refused(f"{x} is too narrow")
        target = f"(({c_type(kind)} *){self.array(x)})[l]" if SIZES[own] == SIZES[kind] else f"{self.array(x)}[l]"
        self.out.append(f"LANES {f'if ({guard}) ' if guard else ''}{target} = ({c_type(kind)})({value});")

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
            result, value, of = self.expression(name, mods[:-1], kind, a)
            self.put(a[0], result, value, guard)
            self.counts[of] += 1

    def branch(self, name, a, guard):
        self.counts["branch"] += 1
        self.flush()
        jump = "return 0;" if name == "ret" else f"goto {a[0].lstrip('$')};"
        if guard:
            self.out.append(f"LANES on[l] = {guard}; {{ u32 u = agree(on);")
            jump = f"if (u == 2) return fail(d, DIVERGENT, {self.number}, 0, 0, 0); if (u) {jump} }}"
        self.out.append(jump)

    def access(self, name, mods, a, guard):
        """A load or store of global memory."""
        *mods, kind = mods
        parts = int(next((m[1] for m in mods if m in ("v2", "v4")), 1))
        if "global" not in mods or set(mods) - CACHE_HINTS - {"v2", "v4"}:
            raise Refused("a space or a mode that is not known")
        where, registers = a if name == "st" else a[::-1]
        base, offset = re.fullmatch(r"\[\s*(%\w+)\s*(?:\+\s*(-?\d+))?\s*\]", where).groups()
        registers, size, store = split(registers.strip("{} ")), SIZES[kind], int(name == "st")
        self.out.append(f"LANES {{ on[l] = {guard or 1}; at[l] = {self.array(base)}[l] + ({int(offset or 0)}ll); }}")
        self.out.append(f"if (request(d, at, on, {parts}, {size}, {store}, {self.number})) return 1;")
        for i, register in enumerate(registers):
            if store:
                self.out.append(f"STORE({c_type(kind)}, {self.value(register, kind)}, at, {i * size});")
            else:
                self.out.append(f"LOAD({c_type(kind)}, {self.array(register)}, at, {i * size});")
        assert len(registers) == parts
        self.counts["store" if store else "load"] += 1

    def shuffle(self, mods, a, guard):
        """Plain indexing, counted: no kernel here should have one."""
        if mods[0] != "sync" or mods[-1] != "b32" or mods[1] not in ("idx", "bfly") or guard or a[3] != "31":
            raise Refused("a mode that is not known")
        lane = self.value(a[2], "b32") + (" & 31" if mods[1] == "idx" else " ^ l")
        self.out.append(f"{{ u32 x[32]; LANES x[l] = {self.value(a[1], 'b32')};")
        self.put(a[0].split("|")[0], "b32", f"x[({lane}) & 31]")
        self.out.append("}")
        self.counts["shuffle"] += 1

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
        self.counts["move"] += 1

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
        self.counts["move"] += 1

    def expression(self, name, mods, kind, a):
        """The type, the value and the class of an instruction that computes one register from others."""

        def values(of=kind):
            return [self.value(operand, of) for operand in a[1:]]

        if name == "ld":  # of a parameter
            return kind, f"params[{self.params.index(a[1].strip('[]'))}]", "move"
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
            "rsqrt": "(float)(1.0 / sqrt((double){0}))",
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
