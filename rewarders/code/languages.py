"""The commands that compile and run programs: one row per language. A run file can add and replace rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import MessageError
from broker.spelling import nearest


@dataclass(frozen=True, slots=True)
class Language:
    """One row. ``source`` is the file that the program is written to; ``compile`` (if any) runs once, ``run`` for each
    test. Without ``run``, the sandbox's warm Python runs the program.

    ``tags`` mark its fenced blocks. ``address_space`` is False for runtimes that reserve far more memory than they use.
    ``extra_mb`` (MiB) is added to the memory limit of a test, ``disk_mb`` (MiB) is the least size of its disk, and
    ``processes`` the limit of processes. ``control`` prints the sum of the two numbers that it reads: it is tried once,
    so that a compiler that fails in the sandbox is not taken for a bad program.
    """

    source: str
    run: tuple[str, ...] = ()
    compile: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    address_space: bool = True
    extra_mb: int = 0
    processes: int = 32
    disk_mb: int = 0
    control: str = ""

    @property
    def needs(self) -> str:
        """The command that the language needs on this machine; empty for Python."""
        return (self.compile or self.run or ("",))[0]


LANGUAGES: Mapping[str, Language] = {
    "python": Language("main.py", tags=("python", "py", "python3")),
    "c": Language(
        "main.c", ("./main",), ("gcc", "-O2", "-std=c17", "-o", "main", "main.c", "-lm"), ("c",),
        control='#include <stdio.h>\nint main(){int a,b;scanf("%d %d",&a,&b);printf("%d",a+b);}',
    ),
    "cpp": Language(
        "main.cpp", ("./main",), ("g++", "-O2", "-std=c++17", "-o", "main", "main.cpp"), ("cpp", "c++", "cc", "cxx"),
        control="#include <iostream>\nint main(){int a,b;std::cin>>a>>b;std::cout<<a+b;}",
    ),
    "rust": Language(
        "main.rs", ("./main",), ("rustc", "-O", "-o", "main", "main.rs"), ("rust", "rs"), address_space=False,
        control='fn main(){let mut s=String::new();std::io::stdin().read_line(&mut s).unwrap();'
        'println!("{}",s.split_whitespace().map(|x|x.parse::<i32>().unwrap()).sum::<i32>());}',
    ),
    "java": Language(
        "Main.java", ("java", "-XX:+UseSerialGC", "-Xss64m", "Main"), ("javac", "Main.java"), ("java",), address_space=False,
        extra_mb=128, processes=64,
        control="import java.util.*;class Main{public static void main(String[] x){Scanner s=new Scanner(System.in);"
        "System.out.println(s.nextInt()+s.nextInt());}}",
    ),
    "javascript": Language(
        "main.js", ("node", "main.js"), (), ("javascript", "js", "node"), address_space=False, extra_mb=64,
        control="console.log(require('fs').readFileSync(0,'utf8').split(' ').map(Number).reduce((a,b)=>a+b))",
    ),
}  # fmt: skip
ALIASES = {"c++": "cpp", "py": "python", "python3": "python", "js": "javascript", "rs": "rust"}


def language_table(own: Mapping[str, Any]) -> dict[str, Language]:
    """The built-in rows and a run file's own. Raises MessageError, which names the row, if one is invalid."""
    table = dict(LANGUAGES)
    for name, row in own.items():
        if isinstance(row, Language):
            table[name] = row
            continue
        fields = Language.__dataclass_fields__
        for key in row:
            if key not in fields:
                raise MessageError(f"languages.{name} has no {key!r}{nearest(key, list(fields))}")
        try:
            lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
            table[name] = Language(**lists)
        except TypeError as error:
            raise MessageError(f"languages.{name}: {error}") from None
    return table


def language_of(name: str, table: Mapping[str, Language]) -> Language:
    """The row of a language, by name or alias. Raises MessageError if there is none."""
    name = name.strip().lower()
    name = name if name in table else ALIASES.get(name, name)
    if name not in table:
        raise MessageError(f"no language {name!r}{nearest(name, list(table))}: add it to the rewarder's languages")
    return table[name]
