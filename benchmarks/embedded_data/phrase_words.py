"""English and German words for the phrases: nouns with gender and plural, verbs with their forms, adjectives, times and places."""

from __future__ import annotations

# A noun: English singular, English plural, German singular, gender, German plural. No noun of the weak declension.
NOUNS = {
    "relative": (
        "friend/friends/Freund/m/Freunde brother/brothers/Bruder/m/Brüder sister/sisters/Schwester/f/Schwestern "
        "daughter/daughters/Tochter/f/Töchter son/sons/Sohn/m/Söhne aunt/aunts/Tante/f/Tanten "
        "uncle/uncles/Onkel/m/Onkel mother//Mutter/f/ father//Vater/m/ grandmother//Großmutter/f/ "
        "grandfather//Großvater/m/ child/children/Kind/n/Kinder"
    ),
    "person": (
        "man/men/Mann/m/Männer woman/women/Frau/f/Frauen child/children/Kind/n/Kinder girl/girls/Mädchen/n/Mädchen "
        "teacher/teachers/Lehrer/m/Lehrer doctor/doctors/Arzt/m/Ärzte baker/bakers/Bäcker/m/Bäcker "
        "gardener/gardeners/Gärtner/m/Gärtner cook/cooks/Koch/m/Köche guest/guests/Gast/m/Gäste "
        "painter/painters/Maler/m/Maler driver/drivers/Fahrer/m/Fahrer singer/singers/Sänger/m/Sänger "
        "nurse/nurses/Krankenschwester/f/Krankenschwestern queen/queens/Königin/f/Königinnen "
        "king/kings/König/m/Könige family/families/Familie/f/Familien"
    ),
    "animal": (
        "dog/dogs/Hund/m/Hunde cat/cats/Katze/f/Katzen horse/horses/Pferd/n/Pferde bird/birds/Vogel/m/Vögel "
        "cow/cows/Kuh/f/Kühe mouse/mice/Maus/f/Mäuse duck/ducks/Ente/f/Enten pig/pigs/Schwein/n/Schweine "
        "goat/goats/Ziege/f/Ziegen donkey/donkeys/Esel/m/Esel chicken/chickens/Huhn/n/Hühner"
    ),
    "reading": (
        "book/books/Buch/n/Bücher newspaper/newspapers/Zeitung/f/Zeitungen letter/letters/Brief/m/Briefe "
        "poem/poems/Gedicht/n/Gedichte story/stories/Geschichte/f/Geschichten report/reports/Bericht/m/Berichte"
    ),
    "food": (
        "apple/apples/Apfel/m/Äpfel cake/cakes/Kuchen/m/Kuchen soup/soups/Suppe/f/Suppen egg/eggs/Ei/n/Eier "
        "pear/pears/Birne/f/Birnen potato/potatoes/Kartoffel/f/Kartoffeln sausage/sausages/Wurst/f/Würste "
        "banana/bananas/Banane/f/Bananen fish/fish/Fisch/m/Fische"
    ),
    "meal": (
        "soup/soups/Suppe/f/Suppen egg/eggs/Ei/n/Eier potato/potatoes/Kartoffel/f/Kartoffeln fish/fish/Fisch/m/Fische"
    ),
    "text": (
        "letter/letters/Brief/m/Briefe poem/poems/Gedicht/n/Gedichte story/stories/Geschichte/f/Geschichten "
        "report/reports/Bericht/m/Berichte"
    ),
    "drink": "coffee//Kaffee/m/ tea//Tee/m/ milk//Milch/f/ water//Wasser/n/ juice//Saft/m/ wine//Wein/m/",
    "thing": (
        "key/keys/Schlüssel/m/Schlüssel bag/bags/Tasche/f/Taschen umbrella/umbrellas/Regenschirm/m/Regenschirme "
        "knife/knives/Messer/n/Messer lamp/lamps/Lampe/f/Lampen ball/balls/Ball/m/Bälle cup/cups/Tasse/f/Tassen "
        "plate/plates/Teller/m/Teller chair/chairs/Stuhl/m/Stühle picture/pictures/Bild/n/Bilder "
        "clock/clocks/Uhr/f/Uhren flower/flowers/Blume/f/Blumen present/presents/Geschenk/n/Geschenke "
        "pencil/pencils/Bleistift/m/Bleistifte table/tables/Tisch/m/Tische bottle/bottles/Flasche/f/Flaschen"
    ),
    "clothing": (
        "coat/coats/Mantel/m/Mäntel hat/hats/Hut/m/Hüte shirt/shirts/Hemd/n/Hemden jacket/jackets/Jacke/f/Jacken "
        "dress/dresses/Kleid/n/Kleider skirt/skirts/Rock/m/Röcke"
    ),
    "vehicle": (
        "car/cars/Auto/n/Autos bicycle/bicycles/Fahrrad/n/Fahrräder bus/buses/Bus/m/Busse boat/boats/Boot/n/Boote "
        "lorry/lorries/Lastwagen/m/Lastwagen"
    ),
    "opening": (
        "door/doors/Tür/f/Türen window/windows/Fenster/n/Fenster box/boxes/Kiste/f/Kisten "
        "suitcase/suitcases/Koffer/m/Koffer gate/gates/Tor/n/Tore"
    ),
    "building": (
        "house/houses/Haus/n/Häuser bridge/bridges/Brücke/f/Brücken tower/towers/Turm/m/Türme wall/walls/Mauer/f/Mauern"
    ),
    "place": (
        "garden/gardens/Garten/m/Gärten kitchen/kitchens/Küche/f/Küchen house/houses/Haus/n/Häuser "
        "school/schools/Schule/f/Schulen museum/museums/Museum/n/Museen park/parks/Park/m/Parks "
        "forest/forests/Wald/m/Wälder city/cities/Stadt/f/Städte village/villages/Dorf/n/Dörfer "
        "room/rooms/Zimmer/n/Zimmer office/offices/Büro/n/Büros restaurant/restaurants/Restaurant/n/Restaurants "
        "cellar/cellars/Keller/m/Keller hotel/hotels/Hotel/n/Hotels hospital/hospitals/Krankenhaus/n/Krankenhäuser"
    ),
    "spot": (
        "house/houses/Haus/n/Häuser door/doors/Tür/f/Türen school/schools/Schule/f/Schulen "
        "church/churches/Kirche/f/Kirchen wall/walls/Mauer/f/Mauern tree/trees/Baum/m/Bäume car/cars/Auto/n/Autos "
        "gate/gates/Tor/n/Tore"
    ),
    "furniture": (
        "table/tables/Tisch/m/Tische chair/chairs/Stuhl/m/Stühle bed/beds/Bett/n/Betten bench/benches/Bank/f/Bänke "
        "cupboard/cupboards/Schrank/m/Schränke"
    ),
    "goal": (
        "station//Bahnhof/m/ doctor//Arzt/m/ school//Schule/f/ church//Kirche/f/ market//Markt/m/ "
        "library//Bibliothek/f/ baker//Bäcker/m/ town_hall//Rathaus/n/ bridge//Brücke/f/ airport//Flughafen/m/ "
        "bank//Bank/f/"
    ),
}
# An adjective: English, German, and the German stem that takes endings where it differs.
ADJECTIVES = {
    "person": (
        "old/alt young/jung friendly/freundlich sad/traurig famous/berühmt rich/reich poor/arm tired/müde/müd "
        "clever/klug"
    ),
    "relative": "old/alt dear/lieb clever/klug tired/müde/müd",
    "animal": "old/alt small/klein big/groß black/schwarz white/weiß brown/braun fat/dick hungry/hungrig",
    "reading": "long/lang short/kurz new/neu old/alt good/gut strange/seltsam interesting/interessant",
    "food": "big/groß small/klein fresh/frisch cheap/billig",
    "meal": "fresh/frisch cheap/billig good/gut",
    "text": "long/lang short/kurz new/neu strange/seltsam beautiful/schön",
    "drink": "cold/kalt warm/warm good/gut",
    "thing": (
        "big/groß small/klein old/alt new/neu red/rot green/grün expensive/teuer/teur cheap/billig beautiful/schön "
        "dirty/schmutzig"
    ),
    "clothing": "red/rot green/grün black/schwarz new/neu old/alt warm/warm expensive/teuer/teur wet/nass",
    "vehicle": "old/alt new/neu red/rot blue/blau small/klein expensive/teuer/teur",
    "opening": "big/groß small/klein heavy/schwer old/alt green/grün",
    "building": "old/alt new/neu high/hoch/hoh big/groß",
    "place": "big/groß small/klein old/alt beautiful/schön quiet/ruhig dark/dunkel/dunkl",
    "spot": "big/groß old/alt",
}
# A verb with an accusative object: English base and past; German infinitive without prefix, forms for ich, du and er, participle,
# prefix that separates; classes of the object.
TRANSITIVE = (
    "see/saw/sehen/sehe/siehst/sieht/gesehen//person,animal,vehicle,building "
    "buy/bought/kaufen/kaufe/kaufst/kauft/gekauft//thing,food,clothing,vehicle,reading "
    "sell/sold/verkaufen/verkaufe/verkaufst/verkauft/verkauft//thing,vehicle,animal,clothing "
    "read/read/lesen/lese/liest/liest/gelesen//reading "
    "write/wrote/schreiben/schreibe/schreibst/schreibt/geschrieben//text eat/ate/essen/esse/isst/isst/gegessen//food "
    "drink/drank/trinken/trinke/trinkst/trinkt/getrunken//drink "
    "find/found/finden/finde/findest/findet/gefunden//thing,clothing,animal "
    "look_for/looked_for/suchen/suche/suchst/sucht/gesucht//thing,person,animal "
    "open/opened/öffnen/öffne/öffnest/öffnet/geöffnet//opening "
    "close/closed/schließen/schließe/schließt/schließt/geschlossen//opening "
    "carry/carried/tragen/trage/trägst/trägt/getragen//thing "
    "repair/repaired/reparieren/repariere/reparierst/repariert/repariert//vehicle,building "
    "wash/washed/waschen/wasche/wäschst/wäscht/gewaschen//vehicle,clothing "
    "visit/visited/besuchen/besuche/besuchst/besucht/besucht//relative,person "
    "love/loved/lieben/liebe/liebst/liebt/geliebt//relative,animal "
    "invite/invited/laden/lade/lädst/lädt/eingeladen/ein/relative,person "
    "call/called/rufen/rufe/rufst/ruft/angerufen/an/relative,person "
    "pick_up/picked_up/holen/hole/holst/holt/abgeholt/ab/relative,person "
    "need/needed/brauchen/brauche/brauchst/braucht/gebraucht//thing,vehicle,clothing "
    "paint/painted/malen/male/malst/malt/gemalt//animal,person "
    "feed/fed/füttern/füttere/fütterst/füttert/gefüttert//animal "
    "forget/forgot/vergessen/vergesse/vergisst/vergisst/vergessen//thing,reading "
    "lose/lost/verlieren/verliere/verlierst/verliert/verloren//thing,clothing,reading "
    "hear/heard/hören/höre/hörst/hört/gehört//person,animal cook/cooked/kochen/koche/kochst/kocht/gekocht//meal "
    "hide/hid/verstecken/verstecke/versteckst/versteckt/versteckt//thing,reading "
    "build/built/bauen/baue/baust/baut/gebaut//building "
    "fetch/fetched/holen/hole/holst/holt/geholt//thing,clothing,reading "
    "understand/understood/verstehen/verstehe/verstehst/versteht/verstanden//person,reading"
)
DATIVE = (
    "help/helped/helfen/helfe/hilfst/hilft/geholfen//relative,person "
    "thank/thanked/danken/danke/dankst/dankt/gedankt//relative,person "
    "answer/answered/antworten/antworte/antwortest/antwortet/geantwortet//relative,person "
    "trust/trusted/vertrauen/vertraue/vertraust/vertraut/vertraut//relative,person"
)
DITRANSITIVE = (
    "give/gave/geben/gebe/gibst/gibt/gegeben//thing,reading,clothing "
    "show/showed/zeigen/zeige/zeigst/zeigt/gezeigt//thing,reading,building,vehicle "
    "send/sent/schicken/schicke/schickst/schickt/geschickt//reading,thing "
    "lend/lent/leihen/leihe/leihst/leiht/geliehen//thing,vehicle,clothing "
    "bring/brought/bringen/bringe/bringst/bringt/gebracht//thing,food,clothing"
)
# The same without an object; the last field is the auxiliary of the perfect.
ANIMALS_DO = (
    "sleep/slept/schlafen/schlafe/schläfst/schläft/geschlafen//h "
    "play/played/spielen/spiele/spielst/spielt/gespielt//h wait/waited/warten/warte/wartest/wartet/gewartet//h "
    "sit/sat/sitzen/sitze/sitzt/sitzt/gesessen//h"
)
STAYING = (
    ANIMALS_DO + " work/worked/arbeiten/arbeite/arbeitest/arbeitet/gearbeitet//h "
    "sing/sang/singen/singe/singst/singt/gesungen//h dance/danced/tanzen/tanze/tanzt/tanzt/getanzt//h "
    "laugh/laughed/lachen/lache/lachst/lacht/gelacht//h"
)
GOING = (
    "go/went/gehen/gehe/gehst/geht/gegangen//s run/ran/laufen/laufe/läufst/läuft/gelaufen//s "
    "drive/drove/fahren/fahre/fährst/fährt/gefahren//s"
)
IMPERATIVES = {
    "open": "öffne",
    "close": "schließ",
    "read": "lies",
    "eat": "iss",
    "drink": "trink",
    "wash": "wasch",
    "buy": "kauf",
    "sell": "verkauf",
    "feed": "füttere",
    "carry": "trag",
    "look for": "such",
    "fetch": "hol",
    "repair": "reparier",
    "cook": "koch",
    "write": "schreib",
    "visit": "besuch",
}
# A modal verb: English, German forms for ich, du, er, wir and sie.
MODALS = {
    "can": ("kann", "kannst", "kann", "können", "können"),
    "must": ("muss", "musst", "muss", "müssen", "müssen"),
    "should": ("sollte", "solltest", "sollte", "sollten", "sollten"),
    "will": ("werde", "wirst", "wird", "werden", "werden"),
}
WANT = ("will", "willst", "will", "wollen", "wollen")
HAVE = ("habe", "hast", "hat", "haben", "haben")
BE = ("bin", "bist", "ist", "sind", "sind")
PAST_TIMES = (
    "yesterday/gestern last_week/letzte_Woche on_Monday/am_Montag this_morning/heute_Morgen last_night/gestern_Abend "
    "last_year/letztes_Jahr"
)
FUTURE_TIMES = (
    "tomorrow/morgen next_week/nächste_Woche on_Sunday/am_Sonntag tonight/heute_Abend soon/bald "
    "this_afternoon/heute_Nachmittag"
)
PRESENT_TIMES = "every_day/jeden_Tag every_morning/jeden_Morgen every_evening/jeden_Abend every_week/jede_Woche"
SELDOM_TIMES = "every_month/jeden_Monat every_year/jedes_Jahr every_summer/jeden_Sommer every_spring/jeden_Frühling"
# Verbs of what lasts, of what happens by chance, and of what nobody does every day: some tenses and times do not suit them.
LASTING = frozenset(("love", "trust", "understand", "need"))
CHANCE = frozenset(("forget", "lose", "see", "hear", "find"))
SELDOM = frozenset(("build", "buy", "sell", "paint", "repair", "hide")) | CHANCE
ADVERBS = "often/oft always/immer sometimes/manchmal never/nie rarely/selten"
SPOT_PREPOSITIONS = "behind/hinter in_front_of/vor next_to/neben"
FURNITURE_PREPOSITIONS = "on/auf under/unter behind/hinter next_to/neben"
THOUGHTS = (
    "I know that/Ich weiß, dass|I think that/Ich glaube, dass|She says that/Sie sagt, dass|"
    "We hope that/Wir hoffen, dass|He writes that/Er schreibt, dass|Everyone knows that/Jeder weiß, dass|"
    "My mother thinks that/Meine Mutter glaubt, dass|It is good that/Es ist gut, dass|Do you know that/Weißt du, dass"
)
CONJUNCTIONS = "because/weil although/obwohl"
STATES = (
    "it is raining/es regnet|the sun is shining/die Sonne scheint|it is cold/es kalt ist|it is late/es spät ist|"
    "it is dark/es dunkel ist|nobody has time/niemand Zeit hat"
)
