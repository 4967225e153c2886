"""Conditions for the picture, what is asked for the prompt: split at sentences and clauses, in English and Chinese."""

import re
from collections import Counter

import pytest

from puma_trl.errors import DataError
from puma_trl.pairs.build.splits import split_text


@pytest.mark.parametrize(
    ("question", "conditions", "asked"),
    [
        ("It is $a. b$ cm. What is it? A. 1\nB. 2", "It is $a. b$ cm.", "What is it? A. 1\nB. 2"),
        ("Ann has $5. Bob has $10. How much is it?", "Ann has $5. Bob has $10.", "How much is it?"),
        (
            "A pear costs US$7. Ann buys 3 of them. What does she pay in US$?",
            "A pear costs US$7. Ann buys 3 of them.",
            "What does she pay in US$?",
        ),
        (
            "AB is 3. As in Fig. 2, what is BC? How long is CD?",
            "AB is 3.",
            "As in Fig. 2, what is BC? How long is CD?",
        ),
        (
            "AB is 3. Then BC is equal to ()\nChoices:\nA:4\nB:5",
            "AB is 3.",
            "Then BC is equal to ()\nChoices:\nA:4\nB:5",
        ),
        ("AB is 3. If BC is 4, find AC. A. 5\nB. 6", "AB is 3. BC is 4.", "Find AC. A. 5\nB. 6"),
        ("AB is 3. Then BC is ( ) (A) 4 (B) 5", "AB is 3.", "Then BC is ( ) (A) 4 (B) 5"),
        ("The sum is 3.5 units. The rest is unknown.", "The sum is 3.5 units.", "The rest is unknown."),
        ("In triangle ABC, angle A = 36.0, then angle C is ()", "In triangle ABC, angle A = 36.0.", "Angle C is ()"),
        (
            "In the figure, AB is parallel to CD, if angle 1 = 50.0, then the degree of angle 2 is ()\nChoices:"
            "\nA:4\nB:5",
            "In the figure, AB is parallel to CD, if angle 1 = 50.0.",
            "The degree of angle 2 is ()\nChoices:\nA:4\nB:5",
        ),
        (
            "As shown in the figure, the chord AB = 8, the radius of circle O is ()",
            "As shown in the figure, the chord AB = 8.",
            "The radius of circle O is ()",
        ),
        ("If $f(x)=x^2$, then what is $f(3)$?", "$f(x)=x^2$.", "What is $f(3)$?"),
        ("If x = 3, then y is ()", "x = 3.", "y is ()"),
        ("If x = 3, then xy = ___", "x = 3.", "xy = ___"),
        ("If x is 3, then xy is ()", "x is 3.", "xy is ()"),
        ("If A is 3, then sin A is ()", "A is 3.", "sin A is ()"),
        ("If A is 3, then it is ()", "A is 3.", "It is ()"),
        ("Cost\nStandard | $3\nExpress | $12\nWhat is it?", "Cost\nStandard | $3\nExpress | $12", "What is it?"),
        ("x: 1 2\ny: 2 4\n\nWhat is y when x = 4?", "x: 1 2\ny: 2 4\nx = 4.", "What is y?"),
        ("5 &lt; 7. He has 3 &nbsp; and what is it?", "5 &lt; 7.", "He has 3 &nbsp; and what is it?"),
        ("It has 3 &amp; 4; find it.", "It has 3 &amp; 4.", "Find it."),
        ("Take 3.\n1. What is it?", "Take 3.", "1. What is it?"),
        ("If it rains, then AB is 2, find BC.", "If it rains, then AB is 2.", "Find BC."),
        ("How many are left if Tom had 5 apples and ate 2?", "Tom had 5 apples and ate 2.", "How many are left?"),
        ("What is y when $x = 3$?", "$x = 3$.", "What is y?"),
        (
            "Ann, who has 3 pens, buys 2 more. How many has she?",
            "Ann, who has 3 pens, buys 2 more.",
            "How many has she?",
        ),
        ("Points A(1, 2) and B(3, 4) lie on l, find AB.", "Points A(1, 2) and B(3, 4) lie on l.", "Find AB."),
        ("书有99页，看了90页，还剩多少页？", "书有99页，看了90页。", "还剩多少页？"),
        ("书有99页。看了90页，还剩多少页？", "书有99页。看了90页。", "还剩多少页？"),
        ("甲有5个,乙有3个,甲比乙多几个?", "甲有5个,乙有3个。", "甲比乙多几个?"),
        ("如图，在△ABC中，∠A=36°，求∠C的度数。", "如图，在△ABC中，∠A=36°。", "求∠C的度数。"),
        ("若∠1=50°，则∠2=( )", "∠1=50°。", "∠2=( )"),
        ("已知$x+y=5$，$xy=6$，则$x^2+y^2=$____。", "已知$x+y=5$，$xy=6$。", "$x^2+y^2=$____。"),
        (
            "小明有5个，小红有3个，一共有多少个？平均每人多少个？",
            "小明有5个，小红有3个。",
            "一共有多少个？平均每人多少个？",
        ),
        ("当x=3时，2x+1的值是____", "x=3。", "2x+1的值是____"),
        ("已知$a=1$, 则$b=(\\quad)$\n(A)1\n(B)2", "已知$a=1$。", "$b=(\\quad)$\n(A)1\n(B)2"),
        ("设$a=1$，则\nA. $b$\nB. $c$", "设$a=1$。", "则\nA. $b$\nB. $c$"),
        ("$$x=1$$What is y?", "$$x=1$$", "What is y?"),
        (
            "I win 2. (If it is red, then I win 3.) What is fair?",
            "I win 2. (If it is red, then I win 3.)",
            "What is fair?",
        ),
        ("It is cut in two, so that AB is 3. Find BC.", "It is cut in two, so that AB is 3.", "Find BC."),
        (
            "X is 2. The letter X will then have to stand for 3?",
            "X is 2.",
            "The letter X will then have to stand for 3?",
        ),
        ("宽增加3．5米，长不变．面积增加多少？", "宽增加3．5米，长不变．", "面积增加多少？"),
        ("按规则走3步，再走2步，共走几步？", "按规则走3步，再走2步。", "共走几步？"),
    ],
)
def test_split(question, conditions, asked):
    split = split_text(question)
    assert (split.conditions, split.asked) == (conditions, asked)


@pytest.mark.parametrize(
    "question",
    [
        "What is 3 + 4?",
        "What is $x$? Let $x+3=5$.",
        "What is the sum of 3, 4, and 5?",
        "As shown in the figure, find x.",
        "In triangle ABC, find AB.",
        "如图所示，求阴影部分的面积。",
        "3个5相加是多少？",
        "下列函数中，哪个是偶函数？",
        "（2021·北京）下列各式中，计算结果为$a^6$的是",
        "[2020全国Ⅰ卷] 如图，求阴影部分的面积。",
        "Of the mean, median and range, which will change?",
        "Based on the table, what is the largest?",
    ],
)
def test_without_conditions_there_is_no_split(question):
    with pytest.raises(DataError, match="no conditions: nothing stands before the part that asks"):
        split_text(question)


# Problems as GeoQA (in English) and CMATH have them
GEOQA = """\
As shown in the figure, in triangle ABC, D is on BC, angle B = 40.0, angle BAD = 30.0, then angle ADC is ()
As shown in the figure, AB is the diameter of circle O, C is on the circle, if angle CAB = 25.0, then angle ABC is ()
As shown in the figure, a ladder of 5 leans against a wall, its foot is 3 from the wall, the height is ()
As shown in the figure, line a is parallel to line b, and angle 1 = 65.0, the size of angle 2 is ()
In rectangle ABCD, AB = 6, BC = 8, the diagonals meet at O, then the length of OA is ()
As shown in the figure, AB ∥ CD, ∠A = 40°, ∠D = 45°, find the degree of ∠1.
As shown in the figure, the radius of circle O is 5. The distance from O to the chord AB is 3. The length of AB is ()
As shown in the figure, it is known that AC = BD, to make triangle ABC congruent to triangle DCB, which can be added?
Given: as shown in the figure, in circle O, OA is perpendicular to BC, angle AOB = 70.0, then angle ADC is ()
As shown in the figure, the side of the square is 2, the area of the shaded part is ()
As shown in the figure, find the area of the shaded part."""
CMATH = """\
学校买来6个足球和8个篮球，每个足球45元，每个篮球56元，一共花了多少元？
小红有12支铅笔，小兰比她多5支，小兰有多少支铅笔？
一辆汽车3小时行驶180千米，照这样的速度，5小时能行驶多少千米？
一个长方形长8厘米，宽5厘米，它的周长是多少厘米？
果园里有桃树120棵，梨树的棵数是桃树的2倍，梨树有多少棵
妈妈买了一些苹果，吃了3个后还剩9个，妈妈原来买了几个苹果？
甲数是36，乙数是甲数的1/4，两数的和是多少？
五年级有学生150人，其中男生占3/5，女生有多少人？
一根绳子长10米，用去它的一半，还剩多少米？
书架上有48本书，平均放在6层，每层放多少本？
48÷6等于多少？"""


@pytest.mark.parametrize("problems", [GEOQA, CMATH], ids=["GeoQA", "CMATH"])
def test_most_problems_can_be_split(problems):
    """And both sides are sentences: nothing is lost but the words that join them, no side ends or begins midway."""
    made = 0
    for problem in problems.splitlines():
        try:
            split = split_text(problem)
        except DataError:
            continue
        made += 1
        assert split.conditions.endswith((".", "。"))
        assert not re.match(r"[,，;；.。]|(?i:and|then|so)\b|则|那么", split.asked)
        assert not re.match(r"[a-z]{2}", split.asked) and not re.match(r"[a-z]{2}", split.conditions)
        joined = Counter(re.sub(r"\W", "", split.conditions + split.asked).casefold())
        whole = Counter(re.sub(r"\W", "", re.sub(r"(?i)\b(?:then|if)\b|则|若", "", problem)).casefold())
        assert not whole - joined and sum((joined - whole).values()) <= 2 * len("if")
    assert made >= 0.8 * len(problems.splitlines())
